// What every page uses: the data, elements, numbers as text, paths of curves.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

// Elements. Texts are only ever set as text: they come from datasets.
function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
const div = (name, ...children) => el("div", { class: name }, ...children);
const span = (name, ...children) => el("span", { class: name }, ...children);
const button = (attributes, ...children) =>
  el("button", { type: "button", class: "button", ...attributes }, ...children);
const meter = (share) =>
  el("span", { class: "meter", "aria-hidden": "true" }, el("i", { style: { width: `${share * 100}%` } }));
const fill = (node, ...children) => node.replaceChildren(...children.flat().filter(Boolean));

// Numbers as people read them.
const count = (n) => n.toLocaleString("en-US");
const many = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
const two = (value) => (value === null || Number.isNaN(value) ? "–" : value.toFixed(2));
function percent(share) {
  if (share > 0 && share < 0.005) return "<1%";
  return share < 1 && share >= 0.995 ? ">99%" : `${Math.round(share * 100)}%`;
}
function seconds(s) {
  if (s < 100) return `${s.toFixed(1)} s`;
  return s < 3600
    ? `${Math.floor(s / 60)} min ${String(Math.round(s % 60)).padStart(2, "0")} s`
    : `${(s / 3600).toFixed(1)} h`;
}

const TICKS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600];
// Round times in seconds from 0 to a total, about as many as wanted.
function ticksOf(total, wanted) {
  const every = TICKS_S.find((each) => total / each <= wanted) || total;
  return Array.from({ length: Math.floor(total / every + 1e-9) + 1 }, (_, n) => n * every);
}

// The path of values over x; a gap where there is none, a dot where a value stands alone.
function linePath(size, x, y) {
  let path = "",
    open = false;
  for (let k = 0; k < size; k++) {
    const value = y(k);
    if (Number.isNaN(value)) {
      open = false;
      continue;
    }
    path += `${open ? "L" : "M"}${x(k).toFixed(2)} ${value.toFixed(2)}`;
    if (!open && (k + 1 === size || Number.isNaN(y(k + 1)))) path += "h0.01";
    open = true;
  }
  return path;
}
// The area between values and a floor.
function areaPath(size, x, y, floor) {
  let path = "",
    start = -1;
  for (let k = 0; k <= size; k++) {
    const gap = k === size || Number.isNaN(y(k));
    if (gap && start >= 0) path += `L${x(k - 1).toFixed(2)} ${floor}Z`;
    if (gap) {
      start = -1;
      continue;
    }
    path +=
      start < 0
        ? `M${x(k).toFixed(2)} ${floor}L${x(k).toFixed(2)} ${y(k).toFixed(2)}`
        : `L${x(k).toFixed(2)} ${y(k).toFixed(2)}`;
    if (start < 0) start = k;
  }
  return path;
}
