// An opened episode: its video beside its curve. The cursor follows what plays; a click or a drag on the curve seeks.

const viewer = { episode: null, transport: null, chart: null, shown: -1 };
const STEP_S = 0.5;
const TIMED = ["stall", "drop", "lost", "unscored"]; // flags that are about a part of the episode

function openEpisode(e, time) {
  const dialog = $("viewer");
  release();
  const { node, transport } = scene(e, playOrPause);
  Object.assign(viewer, { episode: e, transport, shown: -1, chart: chartFrame(e) });
  const readout = el("p", { id: "readout", class: "readout" });
  const plot = div("plot", viewer.chart, transportBar(CONTROLS), readout, el("p", { class: "legend" }, chartLegend(e)));
  if (e.facts.length) node.append(el("p", { class: "viewer-facts" }, e.facts.map((fact) => el("span", null, fact))));
  const events = e.flags.length > 0 && el("ul", { class: "events" }, e.flags.map(eventItem));
  fill(dialog, viewerHead(e), div("viewer-body", node, plot, events));
  if (!dialog.open) {
    dialog.showModal();
    document.documentElement.classList.add("viewing");
  }
  dialog.scrollTop = 0;
  dialog.focus({ preventScroll: true });
  connectChart(viewer.chart);
  drawChart();
  if (time) viewer.transport.seek(time);
  requestAnimationFrame(follow);
}

function viewerHead(e) {
  const place = list.shown.indexOf(e);
  const title = el("h2", { id: "viewer-title" }, e.name, outcomeBadge(e));
  return el("header", { class: "viewer-head" },
    el("div", null, title, el("p", { class: "task" }, e.task)),
    div("viewer-nav",
      span("faint", place >= 0 ? `${count(place + 1)} of ${count(list.shown.length)}` : ""),
      button({ id: "previous", "aria-label": `Previous ${NOUN}`, title: "Left arrow", onclick: () => turn(-1) }, "‹"),
      button({ id: "next", "aria-label": `Next ${NOUN}`, title: "Right arrow", onclick: () => turn(1) }, "›"),
      button({ id: "close", "aria-label": "Close", title: "Esc", onclick: closeEpisode }, "✕")));
}

// Where the curve goes. To a keyboard and to a screen reader it is a slider over time.
function chartFrame(e) {
  const range = { "aria-label": "Frame", "aria-valuemin": "0", "aria-valuemax": String(e.length - 1) };
  return el("div", { class: "chart", id: "chart", tabindex: "0", role: "slider", ...range });
}

function eventItem(flag) {
  const [from, to] = [flag.start / FPS, flag.stop / FPS];
  const when = TIMED.includes(flag.kind.key) && span("faint", `${from.toFixed(1)}–${to.toFixed(1)} s`);
  const attributes = { class: `event ${flag.kind.key}`, title: flag.kind.about, onclick: () => seekTo(from) };
  return el("li", null, button(attributes, el("span", null, flagText(flag)), when));
}

function turn(by) {
  const place = list.shown.indexOf(viewer.episode);
  const next = list.shown[place < 0 ? 0 : (place + by + list.shown.length) % list.shown.length];
  if (next && next !== viewer.episode) {
    history.replaceState(null, "", `#ep=${next.number}`);
    openEpisode(next, 0);
  }
}
function release() {
  if (viewer.transport) viewer.transport.close();
  Object.assign(viewer, { transport: null, episode: null, chart: null });
}
function closeEpisode() {
  if ($("viewer").open) $("viewer").close();
}
function afterClose() {
  const number = viewer.episode && viewer.episode.number;
  release();
  $("viewer").replaceChildren();
  document.documentElement.classList.remove("viewing");
  if (location.hash.startsWith("#ep=")) history.replaceState(null, "", "#");
  const own = number !== null && document.querySelector(`.card[data-episode="${number}"]`);
  if (own) own.focus({ preventScroll: true });
}

function playOrPause() {
  if (viewer.transport.playing) viewer.transport.pause();
  else viewer.transport.play();
}
function seekTo(time) {
  viewer.transport.seek(Math.min(Math.max(time, 0), (viewer.episode.length - 1) / FPS));
}
function step(by) {
  viewer.transport.pause();
  seekTo((frameNow() + by) / FPS);
}
const frameNow = () => frameAt(viewer.episode, viewer.transport.time);
const CONTROLS = { id: "play", playOrPause, step, transport: () => viewer.transport };

// Once per picture of the screen: whatever moved the time, the cursor is where it is.
function follow() {
  const e = viewer.episode;
  if (!e) return;
  const time = viewer.transport.time;
  const label = viewer.transport.playing ? "Pause" : "Play";
  if ($("play").textContent !== label) $("play").textContent = label;
  if (time !== viewer.shown) {
    viewer.shown = time;
    if (viewer.transport.show) viewer.transport.show();
    moveCursor(e, time);
  }
  requestAnimationFrame(follow);
}

function moveCursor(e, time) {
  const frame = frameNow();
  const k = pointOf(e, frame);
  const progress = progressAt(e, k);
  const { x, y, cursor, dot } = viewer.marks;
  const place = x(Math.min(time, (e.length - 1) / FPS) * FPS);
  cursor.setAttribute("transform", `translate(${place.toFixed(2)} 0)`);
  dot.setAttribute("visibility", Number.isNaN(progress) ? "hidden" : "visible");
  dot.setAttribute("cy", Number.isNaN(progress) ? 0 : y(progress).toFixed(2));
  const said = [
    `${(frame / FPS).toFixed(2)} s`,
    `frame ${count(frame)}`,
    Number.isNaN(progress) ? "not scored" : `progress ${progress.toFixed(2)}`,
  ];
  if (W) said.push(`weight ${weightOf(deltaAt(e.first + k), kappaNow()).toFixed(2)}`);
  for (const [lane, stages] of Object.entries(LANES)) {
    if (stages && stages[e.first + k] !== C.no_stage) said.push(`${lane[0]}: ${C.stages[stages[e.first + k]]}`);
  }
  fill(
    $("readout"),
    said.map((text, n) => el("span", n === 2 ? { class: "strong" } : null, text)),
  );
  viewer.chart.setAttribute("aria-valuenow", String(frame));
  viewer.chart.setAttribute("aria-valuetext", said.join(", "));
  viewer.chart.dataset.time = String(time);
}

function connectChart(chart) {
  dragToSeek(chart, (share) => {
    const { x, width } = viewer.marks;
    seekTo(Math.round(x.invert(share * width)) / FPS);
  });
}

function onKey(event) {
  if (!viewer.episode || event.altKey || event.ctrlKey || event.metaKey) return;
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  const onChart = event.target === viewer.chart;
  const onButton = event.target.tagName === "BUTTON";
  const now = viewer.transport.time;
  const action = typing
    ? null
    : {
        ArrowLeft: onChart ? () => seekTo(now - STEP_S) : () => turn(-1),
        ArrowRight: onChart ? () => seekTo(now + STEP_S) : () => turn(1),
        Home: onChart ? () => seekTo(0) : null,
        End: onChart ? () => seekTo(viewer.episode.length / FPS) : null,
        ",": () => step(-1),
        ".": () => step(1),
        " ": onButton ? null : playOrPause,
      }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

// #ep=12 opens an episode, #ep=12&t=3.4 at a time.
function openByHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const e = wanted.has("ep") ? BY_NUMBER.get(Number(wanted.get("ep"))) : null;
  if (!e) return closeEpisode();
  const time = Math.max(Number(wanted.get("t")) || 0, 0);
  if (viewer.episode === e) return seekTo(time);
  return openEpisode(e, time);
}

function startViewer() {
  $("viewer").addEventListener("close", afterClose);
  $("viewer").addEventListener("click", (event) => {
    if (event.target === $("viewer")) closeEpisode();
  });
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", openByHash);
  new ResizeObserver(() => {
    if (viewer.episode) drawChart();
  }).observe($("viewer"));
  openByHash();
}
