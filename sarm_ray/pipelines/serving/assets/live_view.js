// An opened rollout: picture, curve with axes and a stage band, stage probabilities, numbers. #s=name opens it.

const view = { id: null, nodes: null, chart: null, pushed: false, drawn: "" };

function openView(id, pushed) {
  const dialog = $("viewer");
  if (view.id !== id) {
    view.nodes = viewNodes(id);
    fill(dialog, view.nodes.head, view.nodes.body);
    connectReadout(view.nodes.chart);
    dialog.scrollTop = 0;
  }
  Object.assign(view, { id, drawn: "", pushed: dialog.open ? view.pushed : pushed });
  if (!dialog.open) {
    dialog.showModal();
    document.documentElement.classList.add("viewing");
  }
  dialog.focus({ preventScroll: true });
  drawView();
}

function viewNodes(id) {
  const part = {
    badge: span("badge-mark"),
    task: el("p", { class: "task" }),
    place: span("faint"),
    image: el("img", { class: "view-image", alt: `Newest picture of ${id}`, hidden: true }),
    blank: div("picture empty", "no picture yet"),
    figure: span("figure"),
    now: el("p", { class: "view-now" }),
    chart: el("div", { class: "chart", id: "chart" }),
    readout: el("p", { id: "readout", class: "readout", "aria-live": "off" }),
    odds: el("ul", { class: "odds" }),
    numbers: el("dl", { class: "numbers" }),
    missing: el("p", { class: "notice", hidden: true }, "This rollout is not on the board: it has not begun, or it ended more than ten minutes ago."),
  };
  part.head = el("header", { class: "viewer-head" },
    el("div", null, el("h2", { id: "viewer-title" }, id, part.badge), part.task),
    div("viewer-nav", part.place,
      button({ id: "previous", "aria-label": "Previous rollout", title: "Left arrow", onclick: () => turn(-1) }, "‹"),
      button({ id: "next", "aria-label": "Next rollout", title: "Right arrow", onclick: () => turn(1) }, "›"),
      button({ id: "close", "aria-label": "Close", title: "Esc", onclick: () => $("viewer").close() }, "✕")));
  part.body = div("viewer-body",
    part.missing,
    div("stage", part.image, part.blank),
    div("plot", div("view-head", part.figure, part.now), part.chart, part.readout, part.odds),
    part.numbers);
  return part;
}

// Everything that may have changed. Called once per picture of the screen at most.
function drawView() {
  const own = view.nodes;
  if (view.id === null || !$("viewer").open) return;
  const s = sessions.get(view.id);
  own.missing.hidden = Boolean(s);
  own.body.classList.toggle("lacking", !s);
  const place = list.shown.indexOf(view.id);
  setText(own.place, place >= 0 ? `${count(place + 1)} of ${count(list.shown.length)}` : "");
  if (!s) return;
  setText(own.task, s.task || "");
  setText(own.badge, markText(s));
  setAttribute(own.badge, "class", `badge-mark ${markTone(s)}`);
  setAttribute(own.badge, "title", MARKS[s.mark]?.about || "");
  setText(own.figure, two(s.progress ?? null));
  own.figure.classList.toggle("done", isDone(s));
  drawNow(own.now, s);
  own.image.hidden = !s.picture;
  own.blank.hidden = Boolean(s.picture);
  if (s.picture && view.drawn !== s.picture) own.image.src = view.drawn = s.picture;
  view.chart = chartOf(s, Math.max(own.chart.clientWidth, 280));
  view.cursor = svg("line", { class: "hair", y1: PLOT.top, y2: view.chart.bottom + PLOT.gap + PLOT.lane, visibility: "hidden" });
  view.chart.node.append(view.cursor);
  fill(own.chart, view.chart.node);
  drawReadout(s);
  drawOdds(own.odds, s);
  drawNumbers(own.numbers, s);
}

function drawNow(node, s) {
  const stage = hasStage(s.stage) && el("i", { class: `swatch of-${s.stage % STAGE_COLOURS}` });
  const sure = typeof s.confidence === "number" && span("faint", `${percent(s.confidence)} confident`);
  fill(node, stage, span("stage-text", hasStage(s.stage) ? stageName(s, s.stage) : "not scored yet"), sure);
}

// What lies under the pointer.
function connectReadout(chart) {
  const point = (event) => {
    view.pointer = event.clientX - chart.getBoundingClientRect().left;
    schedule();
  };
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", () => {
    view.pointer = null;
    schedule();
  });
}

function drawReadout(s) {
  const { x, limit } = view.chart;
  const last = s.points.length - 1;
  const share = view.pointer === null || view.pointer === undefined ? null : (view.pointer - x(0)) / (x(limit) - x(0));
  if (share === null || last < 0) {
    setText(view.nodes.readout, last < 0 ? "No frame has been scored yet." : "Point at the curve to read it.");
    return;
  }
  const wanted = Math.min(Math.max(share, 0), 1) * limit;
  let k = s.points.findIndex(([time]) => time >= wanted);
  if (k < 0) k = last;
  if (k > 0 && wanted - s.points[k - 1][0] < s.points[k][0] - wanted) k -= 1;
  const [time, progress, stage] = s.points[k];
  setAttribute(view.cursor, "visibility", "visible");
  for (const end of ["x1", "x2"]) setAttribute(view.cursor, end, x(time).toFixed(1));
  const said = [`${time.toFixed(1)} s`, progress === null ? "not scored" : `progress ${two(progress)}`, stageName(s, stage)];
  fill(view.nodes.readout, said.map((text, n) => el("span", n === 1 ? { class: "strong" } : null, text)));
}

function drawOdds(node, s) {
  const odds = s.probabilities || [];
  const row = (share, n) =>
    el("li", n === s.stage ? { class: "now" } : null,
      el("i", { class: `swatch of-${n % STAGE_COLOURS}` }),
      span("odds-name", stageName(s, n)),
      el("span", { class: "meter", "aria-hidden": "true" }, el("i", { class: `of-${n % STAGE_COLOURS}`, style: { width: `${share * 100}%` } })),
      span("odds-share", percent(share)));
  fill(node, odds.map(row));
}

function drawNumbers(node, s) {
  const known = (value, text) => (typeof value === "number" ? text(value) : "–");
  const rows = [
    [s.ended ? "Lasted" : "Running for", seconds(s.time_s || 0)],
    ["Frames received", known(s.num_received, count)],
    ["Scored", known(s.num_scored, count)],
    ["Dropped", known(s.num_dropped, count), s.num_dropped > 0 && "drop"],
    ["Camera", known(s.fps, (fps) => `${+fps.toFixed(1)} fps`)],
    ["Scored at", known(s.score_hz, (hz) => `${+hz.toFixed(1)} Hz`)],
    ["Latency", known(s.latency_ms, (ms) => `${ms < 100 ? ms.toFixed(1) : count(Math.round(ms))} ms`)],
    ["Replica", s.replica || "–"],
    ["Connection", s.ended ? "closed" : s.connected ? "open" : "lost", !s.ended && !s.connected && "drop"],
  ];
  fill(node, rows.map(([name, value, tone]) => div(tone || "", el("dt", null, name), el("dd", null, value))));
}

function turn(by) {
  const place = list.shown.indexOf(view.id);
  const next = list.shown[place < 0 ? 0 : (place + by + list.shown.length) % list.shown.length];
  if (next === undefined || next === view.id) return;
  history.replaceState(null, "", linkOf(next));
  openView(next, view.pushed);
}

// Back closes what a press opened; closing it otherwise takes that step back, so that Back never opens it again.
function afterClose() {
  const { id, pushed } = view;
  Object.assign(view, { id: null, nodes: null, chart: null, pointer: null });
  $("viewer").replaceChildren();
  document.documentElement.classList.remove("viewing");
  if (new URLSearchParams(location.hash.slice(1)).has("s")) {
    if (pushed) history.back();
    else history.replaceState(null, "", "#");
  }
  if (cards.has(id)) cards.get(id).link.focus({ preventScroll: true });
}

function followHash(pushed) {
  if (tokenFromHash() && feed.state !== "live") connect();
  const id = new URLSearchParams(location.hash.slice(1)).get("s");
  if (id !== null) openView(id, pushed);
  else if ($("viewer").open) $("viewer").close();
}

function startView() {
  $("viewer").addEventListener("close", afterClose);
  $("viewer").addEventListener("click", (event) => {
    if (event.target === $("viewer")) $("viewer").close();
  });
  document.addEventListener("keydown", (event) => {
    if (view.id === null || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) turn(by);
  });
  window.addEventListener("hashchange", () => followHash(true));
  new ResizeObserver(schedule).observe($("viewer"));
}
