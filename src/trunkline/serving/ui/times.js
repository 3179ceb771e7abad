// Where the time went: one bar for the whole, a part for each stage, and a legend with the figures.

import { bar, element, milliseconds } from "./elements.js";

const STAGES = ["queue", "tokenise", "trunk", "branches"];

// `timings`: milliseconds of each stage and of the whole.
export function times(timings) {
  const known = STAGES.map((stage) => [stage, timings[stage]]);
  const rest = Math.max(timings.total - known.reduce((sum, [, value]) => sum + value, 0), 0);
  const parts = [...known, ["rest", rest]];
  const whole = parts.reduce((sum, [, value]) => sum + value, 0) || 1;
  const bars = parts.map(([stage, value]) => bar(stage, value / whole));
  const keys = parts.map(([stage, value]) =>
    element(
      "div",
      {},
      element("dt", {}, element("i", { class: `swatch ${stage}` }), stage),
      element("dd", {}, milliseconds(value)),
    ),
  );
  return [
    element("div", { class: "stack", "aria-hidden": "true" }, ...bars),
    element("dl", { class: "keys" }, ...keys),
  ];
}
