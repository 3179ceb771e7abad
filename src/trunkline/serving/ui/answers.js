// The answers of one text as rows: what each task says, how sure it is, and spans marked in the text itself.
// Knows the shape of an answer, not how it was asked for.

import { bar, count, element, percent } from "./elements.js";

const SHOWN = 5; // scores shown at once; the others unfold
const HUES = 6; // tints in style.css
const APPLIES = 0.5; // the score from which a label of a multilabel task applies

const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
const figure = (value) => numbers.format(value).replace("-", "−");

// One row. `answer` is undefined for a task that waits for a second text; `speed` is the one that was used, if any was.
export function row(task, answer, text, speed) {
  const head = element("header", {}, element("h3", {}, task.name), element("small", {}, about(task)));
  const made = element("article", { class: "row", "data-task": task.name }, head);
  if (!answer) {
    head.append(element("p", { class: "note" }, "waits for a second text"));
  } else if (answer.error) {
    head.append(element("p", { class: "bad" }, `No answer: ${answer.error}.`));
  } else if (answer.spans) {
    made.append(element("div", { class: "wide" }, marked(text, answer.spans, hues(task)), table(answer.spans)));
  } else {
    head.append(...said(answer));
    made.append(scores(task, answer));
  }
  if (answer?.out_of_scope) head.append(element("p", { class: "strange" }, "out of scope"));
  if (answer?.exit_layer) head.append(element("small", {}, left(task, answer, speed)));
  return made;
}

// Where the text left the task, and how unsure that was: in the unit of the speed, which it is compared with. Under load
// the server may have used a higher speed than the one that was asked for.
function left(task, { exit_layer: layer, uncertainty }, speed) {
  const where = layer < task.depth ? "left at" : "stayed to";
  const figures = Object.entries({ speed, uncertainty }).map(([name, value]) => `${name}\u00a0${value.toFixed(2)}`);
  return [`${where} layer ${layer} of ${task.depth}`, ...figures].join(" · ");
}

// The answer in a few words, for the end of its branch in the drawing.
export function brief(answer) {
  if (answer.error) return "no answer";
  if (answer.spans) return answer.spans.length ? count(answer.spans.length, "span") : "no span";
  if (answer.labels) return answer.labels.length ? answer.labels.join(", ") : "none";
  return answer.label ?? figure(answer.score);
}

function about(task) {
  return `${task.kind}${task.pair ? ", pair" : ""} · fork ${task.fork}, ${count(task.layers, "own layer")}`;
}

function said(answer) {
  if (answer.label !== undefined) return [element("p", { class: "big", dir: "auto" }, answer.label)];
  if (answer.labels?.length) return [element("p", { class: "big" }, ...separated(answer.labels))];
  if (answer.labels) return [element("p", { class: "note" }, "none of its labels")];
  const unit = element("small", {}, "in the unit of its training data");
  return [element("p", { class: "big" }, figure(answer.score)), unit];
}

const separated = (labels) => labels.flatMap((label, i) => [...(i ? [" · "] : []), element("bdi", {}, label)]);

function scores(task, answer) {
  const ranked = Object.entries(answer.scores ?? {}).sort((one, other) => other[1] - one[1]);
  const applies = new Set(answer.labels ?? [answer.label]);
  const line = ([label, share]) =>
    element(
      "div",
      { class: applies.has(label) ? "score chosen" : "score" },
      element("dt", { dir: "auto" }, label),
      element("dd", {}, track(share, task.kind === "multilabel"), element("span", {}, percent(share))),
    );
  const rest = ranked.slice(SHOWN);
  const made = element("div", { class: "scores" }, element("dl", {}, ...ranked.slice(0, SHOWN).map(line)));
  if (rest.length) {
    const summary = element("summary", {}, count(rest.length, "other label"));
    made.append(element("details", {}, summary, element("dl", {}, ...rest.map(line))));
  }
  return made;
}

function track(share, limited) {
  const made = element("span", { class: "track", "aria-hidden": "true" }, bar("fill", share));
  if (limited) {
    const limit = element("span", { class: "limit", title: "a label applies from 50 %" });
    limit.style.left = `${100 * APPLIES}%`;
    made.append(limit);
  }
  return made;
}

// Offsets count code points, as Python does; a string here counts UTF-16 units, so it is cut as a list of code points.
function marked(text, spans, hue) {
  const points = Array.from(text);
  const cut = (start, end) => points.slice(start, end).join("");
  const made = element("p", { class: "text", dir: "auto" });
  let done = 0;
  for (const { label, start, end } of spans) {
    made.append(
      cut(done, start),
      element(
        "mark",
        { class: `hue-${hue.get(label)}` },
        element("span", { class: "words" }, cut(start, end)),
        "\u00a0", // the label never stands alone on the next line
        element("bdi", { class: "label" }, label),
      ),
    );
    done = end;
  }
  made.append(cut(done));
  return made;
}

// A type has the same tint in every text: its place among the task's types.
function hues(task) {
  const types = [...new Set(task.labels.filter((tag) => tag !== "O").map((tag) => tag.slice(2)))];
  return new Map(types.map((type, i) => [type, i % HUES]));
}

function table(spans) {
  if (!spans.length) return element("p", { class: "note" }, "no span");
  const head = ["Span", "Words", "Characters", "Score"].map((name) => element("th", { scope: "col" }, name));
  const body = spans.map(({ label, text, start, end, score }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", dir: "auto" }, label),
      element("td", { dir: "auto" }, text),
      element("td", {}, `${start}–${end}`),
      element("td", {}, percent(score)),
    ),
  );
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}
