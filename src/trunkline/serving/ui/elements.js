// Elements made from data. Text goes in as text nodes only, so nothing that a user or a model says is ever markup.

const SVG = "http://www.w3.org/2000/svg";

export const element = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

export const drawn = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// A bar's length goes through the CSSOM: the page's policy allows no style attributes.
export function bar(css, share) {
  const made = element("span", { class: css });
  made.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return made;
}

export function percent(share) {
  const value = 100 * share;
  if (value > 99.95 && value < 100) return "> 99.9 %"; // certain to one digit, yet not certain
  if (value > 0 && value < 0.05) return "< 0.1 %";
  return `${value.toFixed(1)} %`;
}

export const milliseconds = (value) => `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;

export const count = (many, thing) => `${many} ${thing}${many === 1 ? "" : "s"}`;

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
