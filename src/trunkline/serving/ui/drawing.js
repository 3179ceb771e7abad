// The trunk from left to right, each branch leaving it at its fork, and how far this text went: layers that ran and
// branches that answered are lit. A column is a depth, as in the report's drawing: a branch's first own layer stands
// under the trunk layer that it replaces, and the deepest fork comes first, so that no branch crosses another's line. A
// text that left at an exit takes its line from there, and what it did not need stays dark.

import { count, drawn } from "./elements.js";

const TOP = 22; // of the trunk's blocks
const HEIGHT = 28;
const MIDDLE = TOP + HEIGHT / 2;
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif';

// model: depth and tasks; on: names of the tasks switched on; pass: null before the first answer, else the layers that
// ran and, by name, what each of these tasks that answered says and after how many layers it left; width in px.
export function drawing(model, on, pass, width) {
  const tasks = [...model.tasks].sort((a, b) => b.fork - a.fork || a.layers - b.layers || (a.name < b.name ? -1 : 1));
  const form = measures(model, tasks, width);
  const rows = new Map(tasks.map((task, i) => [task.name, form.first + form.row * i]));
  const height = form.first + form.row * (tasks.length - 1) + 14;
  const lit = (task) => Boolean(pass?.said.has(task.name));
  const said = words(model, tasks, pass);
  return drawn(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": said },
    ...wires(tasks, rows, form, lit, pass),
    ...trunk(model, tasks, on, pass, form),
    ...tasks.map((task) => branch(task, rows.get(task.name), form, on.has(task.name), pass)),
  );
}

// The drawing for those who do not see it.
function words(model, tasks, pass) {
  const whole = count(model.depth, "layer");
  const ran = pass ? `${pass.layers} of ${whole} of the trunk ran.` : `A trunk of ${whole}.`;
  const limbs = tasks.map((task) => {
    const end = !pass ? "" : pass.said.has(task.name) ? `: ${pass.said.get(task.name)}` : ": did not answer";
    const exit = pass?.left.get(task.name) < task.depth ? `, after layer ${pass.left.get(task.name)}` : "";
    return `${task.name} leaves at layer ${task.fork} with ${count(task.layers, "own layer")}${end}${exit}.`;
  });
  return [ran, ...limbs].join(" ");
}

// All in px: a column's `step`, the `block` in it, the `first` row's middle, a `row`'s height, where names begin.
function measures(model, tasks, width) {
  const columns = Math.max(model.depth, ...tasks.map((task) => task.depth)) + 1;
  const narrow = width < 480;
  const step = Math.min(narrow ? 40 : 54, (width - (narrow ? 60 : 250)) / columns);
  const block = step * 0.74;
  const left = (column) => 1 + column * step;
  const under = TOP + HEIGHT;
  return {
    width, narrow, step, block, left,
    names: left(columns) + 22,
    fork: (column) => left(column) + block + (step - block) / 2,
    corner: Math.min(7, (step - block) / 2),
    first: under + (narrow ? 46 : 26),
    row: narrow ? 44 : tasks.length > 24 ? 22 : 28,
  };
}

// The layer of the trunk from which a text comes to a task: its fork, or an exit before it.
const origin = (task, pass) => Math.min(task.fork, pass?.left.get(task.name) ?? task.fork);

// Lines from the trunk down to the branches: at each fork one stem, and from it a line to each branch. Those of branches
// that answered come last, over the others.
function wires(tasks, rows, form, lit, pass) {
  const made = [];
  for (const alive of [false, true]) {
    const css = alive ? "wire lit" : "wire";
    const ends = new Map();
    for (const task of tasks.filter((task) => lit(task) === alive)) {
      const [x, y] = [form.fork(origin(task, pass)), rows.get(task.name)];
      ends.set(x, y - form.corner); // the last of a fork is the lowest
      const elbow = `M${x} ${y - form.corner}Q${x} ${y} ${x + form.corner} ${y}H${head(task, form)}`;
      made.push(drawn("path", { class: css, d: elbow }));
    }
    made.push(...[...ends].map(([x, end]) => drawn("path", { class: css, d: `M${x} ${MIDDLE}V${end}` })));
  }
  return made;
}

const head = (task, form) => form.left(task.depth + 1) + 6;

function trunk(model, tasks, on, pass, form) {
  const needed = Math.max(0, ...tasks.filter((task) => on.has(task.name)).map((task) => task.fork));
  const [reached, state] = pass ? [pass.layers, "lit"] : [needed, "ready"];
  const parts = [
    drawn("text", { class: "name", x: form.left(0), y: 13 }, "trunk"),
    drawn("path", { class: `spine ${state}`, d: `M${form.left(0)} ${MIDDLE}H${form.fork(reached)}` }),
  ];
  for (const fork of new Set(tasks.flatMap((task) => [task.fork, origin(task, pass)]))) {
    const alive = tasks.some((task) => origin(task, pass) === fork && pass?.said.has(task.name));
    const at = { cx: form.fork(fork), cy: MIDDLE, r: Math.min(3.5, (form.step - form.block) / 2) };
    parts.push(drawn("circle", { class: alive ? "joint lit" : "joint", ...at }));
  }
  for (let column = 0; column <= model.depth; column++) {
    const css = column <= reached ? state : "ghost";
    const what = column ? `layer ${column}` : "embeddings";
    const made = block(form, column, TOP, HEIGHT, css);
    made.append(drawn("title", {}, css === "ghost" ? `${what}: not needed` : what));
    parts.push(made);
    // Where blocks are small every fourth one is numbered; where they are tiny, none.
    if (form.block >= 17 || (form.block >= 13 && column % 4 === 0)) {
      const at = { x: form.left(column) + form.block / 2, y: MIDDLE + 4, "text-anchor": "middle" };
      parts.push(drawn("text", { class: `in ${css}`, ...at }, column ? String(column) : form.block >= 34 ? "emb" : "e"));
    }
  }
  if (reached < model.depth && !form.narrow) {
    const at = { x: form.left(model.depth) + form.block + 10, y: MIDDLE + 4 };
    parts.push(drawn("text", { class: "name", ...at }, "not needed"));
  }
  return parts;
}

function block(form, column, y, height, css) {
  const box = { x: form.left(column), y, width: form.block, height, rx: Math.min(4, form.block / 4) };
  const made = drawn("rect", { class: `block ${css}`, ...box });
  made.style.setProperty("--column", column); // when it lights up
  return made;
}

function branch(task, y, form, on, pass) {
  const said = pass?.said.get(task.name);
  const css = said !== undefined ? "lit" : on ? "ready" : "off";
  const made = drawn("g", { class: `branch ${css}`, "data-task": task.name });
  for (let column = task.fork + 1; column <= task.depth; column++) {
    made.append(block(form, column, y - 8, 16, css === "lit" && column > pass.left.get(task.name) ? "ready" : css));
  }
  made.append(drawn("circle", { class: `head ${css}`, cx: head(task, form), cy: y, r: 5 }));
  const value = said ?? (on ? "" : "off");
  made.append(...(form.narrow ? above : beside)(task, value, y, form));
  made.append(drawn("title", {}, value ? `${task.name}: ${value}` : task.name));
  return made;
}

// Name and answer to the right of the branch.
function beside(task, value, y, form) {
  const shown = fit(value, Math.min(150, (form.width - form.names) * 0.55), "13px");
  const name = fit(task.name, form.width - form.names - taken(shown), "600 13px");
  return [
    drawn("path", { class: "leader", d: `M${head(task, form) + 9} ${y}H${form.names - 8}` }),
    drawn("text", { class: "task", x: form.names, y: y + 4.5 }, name),
    drawn("text", { class: "value", x: form.width, y: y + 4.5, "text-anchor": "end" }, shown),
  ];
}

// Name and answer over the branch, the name as far to the left of it as it needs.
function above(task, value, y, form) {
  const shown = fit(value, form.width / 2, "13px");
  const name = fit(task.name, form.width - taken(shown), "600 13px");
  const x = Math.max(1, Math.min(form.fork(task.fork) + 8, form.width - taken(shown) - measure(name, "600 13px")));
  return [
    drawn("text", { class: "task halo", x, y: y - 15 }, name),
    drawn("text", { class: "value halo", x: form.width, y: y - 15, "text-anchor": "end" }, shown),
  ];
}

const taken = (shown) => (shown ? measure(shown, "13px") + 14 : 0);

const canvas = document.createElement("canvas").getContext("2d");

function measure(text, size) {
  canvas.font = `${size} ${FONT}`;
  return canvas.measureText(text).width;
}

// The text, shortened with an ellipsis to `room` px; the whole of it stands in a title.
function fit(text, room, size) {
  if (measure(text, size) <= room) return text;
  let letters = Array.from(text.slice(0, 100));
  while (letters.length && measure(`${letters.join("")}…`, size) > room) letters = letters.slice(0, -1);
  return `${letters.join("")}…`;
}
