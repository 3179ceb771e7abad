// The page: what is asked, and putting the parts together. One state, and everything on the page is drawn from it.

import { brief, row } from "./answers.js";
import { drawing } from "./drawing.js";
import { count, element, milliseconds } from "./elements.js";
import { times } from "./times.js";
import { describe, predict } from "./wire.js";

const EXAMPLES = [
  ["Could you move my dentist appointment to Thursday at 5 pm? It is urgent."],
  ["The parcel came two days late and the box was torn. I want my money back!"],
  ["Will it rain in Lisbon this weekend?"],
  ["Wake me at a quarter past five, I'm going fishing", "Alarm for 5:15 am please, big day at the lake"],
];

const at = (id) => document.getElementById(id);
const [text, pair, speed, key] = [at("text"), at("pair"), at("speed"), at("key")];

let model = null; // as the server describes it
let off = new Set(); // names of the tasks switched off, so that a task that is new is on
let reply = null; // the last answer, with the text that it is about
let running = null; // the AbortController of the request under way
let width = 0; // of the drawing

const loaded = () => model.tasks.filter((task) => task.loaded);
const on = () => loaded().filter((task) => !off.has(task.name));
const early = () => on().filter((task) => task.exits.length);
const reads = (task) => !task.pair || pair.value.trim() !== "";

async function load() {
  model = await describe(key.value);
  showModel();
}

async function ask() {
  running?.abort();
  const mine = (running = new AbortController());
  complain("");
  at("ask").setAttribute("aria-busy", "true");
  try {
    if (!model) await load();
    const problem = missing();
    if (problem) return complain(...problem);
    const input = { text: text.value };
    if (pair.value.trim() && on().some((task) => task.pair)) input.text_pair = pair.value;
    const asked = { inputs: [input], tasks: on().filter(reads).map((task) => task.name) };
    if (early().length && Number(speed.value)) asked.speed = Number(speed.value);
    const found = await predict(asked, key.value, mine.signal);
    if (found.bundle !== model.bundle) await load(); // another one went live meanwhile
    reply = { ...found, text: input.text, answers: found.results[0] };
    showReply();
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  } finally {
    if (running === mine) at("ask").removeAttribute("aria-busy");
  }
}

// What is to be mended before asking, as a sentence and the field to mend it in; nothing where all is well.
function missing() {
  if (!text.value.trim()) return ["Type a text first.", text];
  if (!on().length) return ["Switch on at least one task.", at("all")];
  if (!on().some(reads)) return ["These tasks read two texts. Type the second one too.", pair];
  return null;
}

function complain(message, field) {
  at("problem").textContent = message;
  if (field && !at("tasks-field").contains(document.activeElement)) field.focus(); // not away from the switches
}

function fail(error) {
  if (error.status === 401) at("key-field").hidden = false;
  if (error.status === 404 && model) load().catch(fail); // a task that is gone: show those that there are
  complain(error.message, error.status === 401 ? key : null);
}

function showModel() {
  at("name").textContent = model.name;
  at("about").textContent = `bundle ${model.bundle} · ${model.engine} ${model.dtype} on ${model.device}`;
  at("headline").textContent = `${count(model.tasks.length, "task")} in one pass`;
  at("tasks").replaceChildren(...model.tasks.map(chip));
  at("tasks-field").hidden = false;
  const pairs = EXAMPLES.filter(([, second]) => !second || model.tasks.some((task) => task.pair));
  at("examples").replaceChildren(...pairs.map(example));
  showSwitches();
}

function chip(task) {
  const box = element("input", { type: "checkbox", value: task.name });
  box.disabled = !task.loaded;
  box.addEventListener("change", () => {
    if (box.checked) off.delete(task.name);
    else off.add(task.name);
    switched();
  });
  const state = task.loaded ? [] : [element("small", {}, "unloaded")];
  return element("label", { class: "chip" }, box, task.name, ...state);
}

function switched() {
  showSwitches();
  if (reply) ask();
}

function showSwitches() {
  const names = new Set(on().map((task) => task.name));
  for (const box of at("tasks").querySelectorAll("input")) box.checked = names.has(box.value);
  const pairs = on().filter((task) => task.pair).map((task) => task.name);
  at("pair-field").hidden = !pairs.length;
  at("pair-tasks").textContent = `read by ${pairs.join(", ")}`;
  const exits = early().map((task) => task.name);
  at("speed-field").hidden = !exits.length;
  at("speed-tasks").textContent = `0 is off; exits: ${exits.join(", ")}`;
  at("speed-shown").textContent = Number(speed.value).toFixed(2);
  draw();
}

function example([first, second]) {
  const made = element("button", { type: "button", dir: "auto" }, first);
  if (second) made.append(element("span", { class: "second" }, second));
  made.addEventListener("click", () => {
    text.value = first;
    pair.value = second ?? "";
    ask().then(reveal);
  });
  return element("li", {}, made);
}

function showReply() {
  const { answers, layers, speeds, timings } = reply;
  const answered = Object.values(answers).filter((answer) => !answer.error).length;
  const short = element("b", { class: "big" }, `${count(answered, "answer")} in ${milliseconds(timings.total)}`);
  at("summary").replaceChildren(short, ` ${layers} of ${count(model.depth, "trunk layer")} run`);
  at("times").replaceChildren(...times(timings));
  const marks = (task) => task.kind === "tagging"; // first, for they show the text itself
  const shown = on().filter((task) => task.name in answers || !reads(task)).sort((a, b) => marks(b) - marks(a));
  at("rows").replaceChildren(...shown.map((task) => row(task, answers[task.name], reply.text, speeds[task.name])));
  at("answers").hidden = false;
  const state = new URLSearchParams({ text: text.value });
  if (pair.value) state.set("pair", pair.value);
  if (off.size) state.set("off", [...off].join(","));
  if (Number(speed.value)) state.set("speed", speed.value);
  at("link").hash = state;
  draw();
}

function draw() {
  if (!model || !width) return;
  const names = new Set(on().map((task) => task.name));
  const said = Object.entries(reply?.answers ?? {}).filter(([name, answer]) => names.has(name) && !answer.error);
  const pass = reply && {
    layers: reply.layers,
    said: new Map(said.map(([name, answer]) => [name, brief(answer)])),
    left: new Map(said.map(([name, answer]) => [name, answer.exit_layer ?? Infinity])),
  };
  at("drawing").replaceChildren(drawing(model, names, pass, width));
}

// A link to the page carries what was asked behind its #, which never leaves the browser. Opening it asks again.
function open() {
  const state = new URLSearchParams(location.hash.slice(1));
  if (!state.has("text")) return load().catch(fail);
  if (location.hash === at("link").hash) return; // it is what the page shows
  text.value = state.get("text");
  pair.value = state.get("pair") ?? "";
  off = new Set(state.get("off")?.split(","));
  speed.value = Number(state.get("speed")) || 0;
  if (model) showSwitches();
  ask();
}

// Where the parts stand under each other, as on a phone, what was asked for would else appear out of sight.
function reveal() {
  if (reply && matchMedia("(max-width: 58rem)").matches) at("pass").scrollIntoView({ block: "nearest" });
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask().then(reveal);
});
at("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
speed.addEventListener("input", switched);
at("all").addEventListener("click", () => {
  off.clear();
  switched();
});
at("none").addEventListener("click", () => {
  off = new Set(loaded().map((task) => task.name));
  switched();
});
addEventListener("hashchange", open);
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width === width) return;
  width = contentRect.width;
  draw();
}).observe(at("drawing"));
open();
