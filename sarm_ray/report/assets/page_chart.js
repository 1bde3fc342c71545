// The curve of an opened episode: progress, annotation, what is flagged, and lanes for weights (where there are any) and
// stages below it.

const PLOT = { left: 34, right: 10, top: 16, lane: 15, gap: 7, axis: 22 };
const STAGE_COLOURS = 8;

function drawChart() {
  const e = viewer.episode;
  const width = Math.max(viewer.chart.clientWidth, 280);
  const lanes = ["annotated", "predicted"].filter((name) => hasAny(LANES[name], e, C.no_stage));
  const plotHeight = width < 520 ? 190 : 290;
  const bottom = PLOT.top + plotHeight;
  const above = W ? 1 : 0; // lanes
  const height = bottom + (lanes.length + above) * (PLOT.lane + PLOT.gap) + PLOT.axis;
  const inner = width - PLOT.left - PLOT.right;
  const last = Math.max(e.length - 1, 1);
  const x = (frame) => PLOT.left + (Math.min(frame, last) / last) * inner;
  x.invert = (place) => Math.min(Math.max((place - PLOT.left) / inner, 0), 1) * last;
  const y = (progress) => bottom - progress * plotHeight;
  const cursor = svg("g", { id: "cursor", class: "cursor" },
    svg("line", { x1: 0, x2: 0, y1: PLOT.top - 6, y2: height - PLOT.axis }),
    svg("circle", { r: 5, cx: 0, cy: 0 }));
  viewer.marks = { e, x, y, width, cursor, dot: cursor.lastChild };
  const weights = svg("g", { class: "weight-runs" });
  viewer.weights = { node: weights, top: bottom + PLOT.gap, plot: svg("g", { class: "dropped" }), plotHeight };
  const lane = (name, n) => stageLane(e, x, name, bottom + PLOT.gap + (n + above) * (PLOT.lane + PLOT.gap));
  fill(viewer.chart, svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    hatch(), viewer.weights.plot, grid(x, y, width), flagMarks(e, x, bottom), curves(e, x, y, bottom),
    W && svg("text", { class: "lane-name", x: PLOT.left - 4, y: bottom + PLOT.gap + 11 }, "w"), weights,
    lanes.map(lane), timeAxis(e, x, height), cursor));
  if (W) drawWeightRuns();
  moveCursor(e, viewer.transport.time);
}

function hatch() {
  const lines = { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  return svg("defs", null, svg("pattern", lines, svg("rect", { class: "hatch", width: 2.5, height: 6 })));
}

function grid(x, y, width) {
  const across = (progress) => ({ x1: PLOT.left, x2: width - PLOT.right, y1: y(progress), y2: y(progress) });
  const levels = [0, 0.5, 1];
  return svg("g", { class: "grid" },
    levels.map((level) => svg("line", across(level))),
    levels.map((level) => svg("text", { class: "level", x: PLOT.left - 6, y: y(level) + 4 }, String(level))),
    svg("line", { class: "goal", ...across(DATA.done) }));
}

function flagMarks(e, x, bottom) {
  const mark = ({ kind, start, stop }) => {
    const box = { x: x(start), width: Math.max(x(stop) - x(start), 3) };
    return svg("g", { class: `span ${kind.key}` },
      svg("rect", { class: "wash", ...box, y: PLOT.top, height: bottom - PLOT.top }),
      svg("rect", { class: "cap", ...box, y: PLOT.top - 5, height: 4, rx: 2 }));
  };
  return svg("g", null, e.flags.filter((flag) => TIMED.includes(flag.kind.key)).map(mark));
}

function curves(e, x, y, bottom) {
  const at = (k) => x(frameOf(e, k));
  const progress = (k) => y(progressAt(e, k));
  const truth = (k) => y(truthAt(e, k));
  return svg("g", null,
    svg("path", { class: "area", d: areaPath(e.points, at, progress, bottom) }),
    svg("path", { class: "truth", d: TRUTH ? linePath(e.points, at, truth) : "" }),
    svg("path", { class: "line", d: linePath(e.points, at, progress) }));
}

function stageLane(e, x, name, top) {
  const stages = LANES[name];
  const part = ([stage, from, to]) => {
    const [left, width] = [x(from), Math.max(x(to) - x(from), 1)];
    const text = C.stages[stage];
    const box = { x: left, width: Math.max(width - 1, 0.5), y: top, height: PLOT.lane, rx: 3 };
    const fits = width > text.length * 6.2 + 8;
    return svg("g", null,
      svg("title", null, `${name}: ${text}`),
      svg("rect", { class: `stage-${stage % STAGE_COLOURS}`, ...box }),
      fits && svg("text", { class: "stage-name", x: left + width / 2, y: top + 11 }, text));
  };
  const runs = runsOf(e, (k) => stages[e.first + k]).filter(([stage]) => stage !== C.no_stage);
  return svg("g", { class: "lane" },
    svg("text", { class: "lane-name", x: PLOT.left - 4, y: top + 11 }, name[0]), runs.map(part));
}

function timeAxis(e, x, height) {
  const total = Math.max(e.length - 1, 1) / FPS;
  const wanted = x(e.length) < 460 ? 4 : 8;
  const ticks = ticksOf(total, wanted);
  const text = (tick) =>
    svg("text", { x: x(tick * FPS), y: height - 6, class: !tick && "first" }, tick ? `${+tick.toFixed(1)}` : "0 s");
  return svg("g", { class: "time" }, ticks.map(text));
}

// The lane of weights, and in the plot the frames that weigh nothing: redrawn whenever kappa moves.
function drawWeightRuns() {
  const e = viewer.episode;
  const { x } = viewer.marks;
  const { node, plot, top, plotHeight } = viewer.weights;
  const kappa = kappaNow();
  const runs = runsOf(e, (k) => {
    const weight = weightOf(deltaAt(e.first + k), kappa);
    return weight && Math.max(Math.round(weight * 10) / 10, 0.1); // in tenths, and 0 for nothing but 0
  });
  const box = ([, from, to]) => ({ x: x(from), width: Math.max(x(to) - x(from), 0.5) });
  const part = (run) => {
    const tone = run[0] === 0 ? { class: "none" } : { class: "some", "fill-opacity": 0.12 + 0.88 * run[0] };
    const title = svg("title", null, `weight ${run[0].toFixed(1)}`);
    return svg("rect", { ...tone, ...box(run), y: top, height: PLOT.lane }, title);
  };
  const dropped = (run) => svg("rect", { fill: "url(#hatch)", ...box(run), y: PLOT.top, height: plotHeight });
  fill(node, runs.map(part));
  fill(plot, runs.filter(([weight]) => weight === 0).map(dropped));
}

function chartLegend(e) {
  const key = (name, text) => span("key", el("i", { class: `key-${name}` }), text);
  return [
    key("progress", "progress"),
    hasAny(TRUTH, e, C.no_value) && key("truth", "annotated"),
    W && key("dropped", "weight 0"),
    W && key("weight", "w: RA-BC weight"),
    hasAny(LANES.annotated, e, C.no_stage) && key("stage-a", "a: annotated stage"),
    hasAny(LANES.predicted, e, C.no_stage) && key("stage-p", "p: predicted stage"),
  ];
}
