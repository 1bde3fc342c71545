// What every page uses: the data, elements, numbers as text, episodes and their pictures.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const FPS = DATA.dataset.fps;
const NOUN = DATA.noun || "episode"; // what an episode is called
const TITLE = NOUN[0].toUpperCase() + NOUN.slice(1);
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

// Episodes with what there is to be seen of them.
const FILMED = DATA.episodes.number.map((number, i) => {
  const e = DATA.episodes;
  return {
    i,
    number,
    name: e.name ? e.name[i] : `${TITLE} ${number}`,
    length: e.length[i],
    task: e.tasks[e.task[i]],
    strip: e.strip[i],
    video: e.video[i],
    videoFrames: e.video_frames[i],
    problem: e.problem[i],
  };
});

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
