// What every part of the page uses: the data, elements, numbers as text, and paths of curves.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const FPS = DATA.dataset.fps;
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

// Arrays in base64, little endian, as all machines that run a browser are.
function unpack(text, Kind) {
  if (text === null || text === undefined) return null;
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Kind(bytes.buffer);
}

const C = DATA.curves;
const PROGRESS = unpack(C.progress, Uint16Array);
const DELTAS = unpack(C.deltas, Int16Array);
const TRUTH = unpack(C.truth, Uint16Array);
const LANES = { annotated: unpack(C.annotated, Uint8Array), predicted: unpack(C.predicted, Uint8Array) };

const KINDS = DATA.kinds.map(([key, label, about]) => ({ key, label, about }));

const EPISODES = DATA.episodes.number.map((number, i) => {
  const e = DATA.episodes;
  return {
    i,
    number,
    length: e.length[i],
    task: e.tasks[e.task[i]],
    final: e.final[i],
    highest: e.highest[i],
    drawdown: e.drawdown[i],
    outcome: outcomeOf(e.outcome[i]),
    flags: e.flags[i].map(([kind, start, stop, amount]) => ({ kind: KINDS[kind], start, stop, amount })),
    points: e.points[i],
    first: 0,
    strip: e.strip[i],
    video: e.video[i],
    videoFrames: e.video_frames[i],
    problem: e.problem[i],
  };
});
EPISODES.reduce((first, e) => ((e.first = first), first + e.points), 0);
const BY_NUMBER = new Map(EPISODES.map((e) => [e.number, e]));

function outcomeOf(grade) {
  if (grade === null) return null;
  return grade >= 1 ? "success" : grade <= 0 ? "failure" : "partial";
}
const OUTCOMES = ["success", "partial", "failure"].filter((name) => EPISODES.some((e) => e.outcome === name));

// An episode's points: point k is frame floor(k (length - 1) / (points - 1)).
const frameOf = (e, k) => Math.floor((k * (e.length - 1)) / Math.max(e.points - 1, 1));
function pointOf(e, frame) {
  const k = Math.min(Math.ceil((frame * Math.max(e.points - 1, 1)) / Math.max(e.length - 1, 1)), e.points - 1);
  return k > 0 && frame - frameOf(e, k - 1) < frameOf(e, k) - frame ? k - 1 : k;
}
const valueAt = (array, at) => (array[at] === C.no_value ? NaN : array[at] / C.scale);
const progressAt = (e, k) => valueAt(PROGRESS, e.first + k);
const truthAt = (e, k) => (TRUTH ? valueAt(TRUTH, e.first + k) : NaN);
function deltaAt(at) {
  return DELTAS[at] === C.no_delta ? NaN : DELTAS[at] / C.delta_scale;
}
function hasAny(array, e, none) {
  if (!array) return false;
  for (let k = 0; k < e.points; k++) if (array[e.first + k] !== none) return true;
  return false;
}

// Runs of equal values among an episode's points: [value, first frame, one past the last frame].
function runsOf(e, valueOf) {
  const runs = [];
  for (let k = 0; k < e.points; k++) {
    const value = valueOf(k);
    const begin = k === 0 ? 0 : (frameOf(e, k - 1) + frameOf(e, k) + 1) / 2;
    const last = runs[runs.length - 1];
    if (!last || last[0] !== value) {
      if (last) last[2] = begin;
      runs.push([value, begin, e.length]);
    }
  }
  return runs;
}

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
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}
const known = (values) => values.filter((value) => value !== null);

// What a flag says in a chip.
function flagText({ kind, amount }) {
  if (kind.key === "stall") return `stall ${amount.toFixed(1)} s`;
  if (kind.key === "drop" || kind.key === "lost") return `${kind.label} −${amount.toFixed(2)}`;
  return kind.key === "unscored" ? `${percent(amount)} not scored` : kind.label;
}
function flagChips(e) {
  const kinds = new Map();
  for (const flag of e.flags) {
    const best = kinds.get(flag.kind);
    kinds.set(flag.kind, {
      worst: !best || flag.amount > best.worst.amount ? flag : best.worst,
      n: (best ? best.n : 0) + 1,
    });
  }
  return [...kinds].map(([kind, { worst, n }]) =>
    el("span", { class: `flag ${kind.key}`, title: kind.about }, n > 1 ? `${flagText(worst)} (${n})` : flagText(worst)),
  );
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

// Pictures: strips of an episode lie in sprites, which each get one rule, so that none is in the document twice.
const STRIP_FRAMES = DATA.media.strip_frames;
const SHEET = document.head.appendChild(el("style")).sheet;
DATA.media.sprites.forEach((source, n) => SHEET.insertRule(`.sprite-${n}{background-image:url("${source}")}`));

function picture(e, place) {
  const node = el("i", { class: `picture sprite-${e.strip[0]}`, style: { "aspect-ratio": String(DATA.media.aspect) } });
  showPicture(node, e, place);
  return node;
}
function showPicture(node, e, place) {
  const [sprite, row] = e.strip;
  const rows = DATA.media.num_rows[sprite];
  node.style.backgroundSize = `${STRIP_FRAMES * 100}% ${rows * 100}%`;
  node.style.backgroundPosition = `${(place / (STRIP_FRAMES - 1)) * 100}% ${rows > 1 ? (row / (rows - 1)) * 100 : 0}%`;
}
// A card shows every other picture of the strip, or they would be too small on a phone.
function strip(e) {
  if (!e.strip) return el("div", { class: "strip empty" }, e.problem ? "video cannot be read" : "no pictures");
  const places = Array.from({ length: Math.ceil(STRIP_FRAMES / 2) }, (_, n) => 2 * n);
  return el(
    "div",
    { class: "strip", role: "img", "aria-label": `${places.length} pictures of episode ${e.number}` },
    places.map((place) => picture(e, place)),
  );
}
