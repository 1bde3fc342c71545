// Cards: one per rollout, built once and then changed where something is new.

const MARKS = {
  regressing: { label: "regressing", about: "Progress fell by more than 0.1 within 3 seconds." },
  stalled: { label: "stalled", about: "Progress has not risen by more than 0.02 for 5 seconds or longer." },
  silent: { label: "silent", about: "No frame has come for 3 seconds or longer." },
  running: { label: "running", about: "Progress rises." },
  done: { label: "done", about: "Progress is 0.95 or more." },
  ended: { label: "ended", about: "The rollout is over." },
};
const cards = new Map(); // id -> its nodes
const onScreen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const own = cards.get(target.dataset.session);
    if (!own || own.root.firstChild !== target) continue;
    own.seen = isIntersecting;
    if (isIntersecting) changed.ids.add(target.dataset.session);
  }
  schedule();
}, { rootMargin: "200px" });

const setText = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};
const setAttribute = (node, name, value) => {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
};

function briefly(s) {
  if (s < 60) return `${Math.max(Math.floor(s), 0)} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h`;
}
const elapsed = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
const linkOf = (id) => `#${new URLSearchParams({ s: id })}`;
const isDone = (s) => typeof s.progress === "number" && s.progress >= DONE;

// What the chip says; nothing where all is well.
function markText(s) {
  if (s.mark === "running") return "";
  if (s.mark === "ended") return s.outcome || "ended";
  if (s.mark === "done") return "done";
  const label = s.mark === "silent" && !s.connected ? "offline" : MARKS[s.mark]?.label || s.mark;
  return s.mark === "regressing" ? label : `${label} ${briefly(feed.now - s.mark_s)}`;
}
const markTone = (s) => (s.mark === "ended" ? `ended ${s.outcome || ""}` : s.mark);

function newCard(id) {
  const part = {
    image: el("img", { class: "shot-image", alt: "", decoding: "async", hidden: true }),
    blank: span("shot-blank", "no picture yet"),
    chip: span("chip-mark"),
    time: span("shot-time"),
    name: span("card-name", id),
    figure: span("card-final"),
    task: el("p", { class: "card-task" }),
    spark: el("canvas", { class: "spark", "aria-hidden": "true", "data-session": id }),
    swatch: el("i", { class: "swatch" }),
    stage: span("stage-text"),
    sure: span("sure"),
  };
  const shot = div("shot", part.blank, part.image, part.chip, part.time);
  const body = div("card-body",
    div("card-head", part.name, part.figure), part.task,
    el("p", { class: "card-stage" }, part.swatch, part.stage, part.sure));
  const link = el("a", { class: "card rollout", href: linkOf(id), "data-session": id }, shot, body, part.spark);
  onScreen.observe(link);
  resized.observe(part.spark);
  return { ...part, link, root: el("li", null, link), seen: false, drawn: "" };
}

function updateCard(own, s) {
  const stage = hasStage(s.stage) ? stageName(s, s.stage) : "not scored yet";
  const figure = two(s.progress ?? null);
  const mark = markText(s);
  setAttribute(own.link, "data-mark", s.mark);
  setAttribute(own.link, "aria-label", [s.id, `progress ${figure}`, stage, mark].filter(Boolean).join(", "));
  setText(own.figure, figure);
  own.figure.classList.toggle("done", isDone(s));
  setText(own.task, s.task || "");
  setText(own.stage, stage);
  setAttribute(own.swatch, "class", hasStage(s.stage) ? `swatch of-${s.stage % STAGE_COLOURS}` : "swatch");
  setText(own.sure, typeof s.confidence === "number" ? percent(s.confidence) : "");
  setText(own.time, elapsed(s.time_s || 0));
  setAttribute(own.chip, "class", `chip-mark ${markTone(s)}`);
  setText(own.chip, mark);
  if (!own.seen) return;
  if (own.drawn !== s.picture) {
    own.drawn = s.picture;
    own.image.hidden = !s.picture;
    own.blank.hidden = Boolean(s.picture);
    if (s.picture) own.image.src = s.picture;
  }
  drawSpark(own.spark, s);
}

function dropCard(id) {
  const own = cards.get(id);
  if (!own) return;
  onScreen.unobserve(own.link);
  resized.unobserve(own.spark);
  own.root.remove();
  cards.delete(id);
}
