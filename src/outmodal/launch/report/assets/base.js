"use strict";
// What the figures share: elements, numbers, scales. Text from runs enters as text nodes only.

const SVG = "http://www.w3.org/2000/svg";
const HUES = 8;

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const el = (name, attributes = {}, ...children) =>
  fill(document.createElement(name), attributes, children);

const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

function tool(text, act, pressed = null) {
  const button = el("button", { type: "button", class: "tool", "aria-pressed": pressed }, text);
  button.addEventListener("click", () => act(button));
  return button;
}

// A number as people write it; `percent` for shares of 1.
function shown(value, percent = false) {
  if (value === null || value === undefined) return "not finite";
  if (percent) return (100 * value).toFixed(2).replace(/\.?0+$/, "") + " %";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

// Round numbers between low and high, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const factors = last - first > 3 ? [1] : [1, 2, 5];
  for (let p = first; p <= last; p++) {
    for (const f of factors) found.push(f * 10 ** p);
  }
  return found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
}

// Maps low..high to from..to.
function scale(low, high, from, to, log = false) {
  const f = log ? Math.log : (v) => v;
  const a = f(low), b = f(high);
  return (v) => from + ((f(v) - a) / (b - a || 1)) * (to - from);
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// Calls `draw` with the width of `node` now and whenever it changes.
function whenSized(node, draw) {
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.round(node.clientWidth);
    if (width && width !== last) draw((last = width));
  }).observe(node);
}
