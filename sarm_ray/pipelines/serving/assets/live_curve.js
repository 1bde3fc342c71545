// Curves: small ones on canvases, many of which are drawn twice a second, and the large one with its axes.

const STAGE_COLOURS = 8;
const LIMITS_S = [5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 600, 900, 1200, 1800, 2700, 3600];
const DONE = 0.95;
const tone = {};

// Canvases know no style sheets.
function readTones() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["accent", "panel", "line", "line-2", "grey"]) {
    tone[name] = style.getPropertyValue(`--${name}`).trim();
  }
  tone.stages = Array.from({ length: STAGE_COLOURS }, (_, n) => style.getPropertyValue(`--s${n}`).trim());
}
const hasStage = (stage) => Number.isInteger(stage) && stage >= 0;
const stageTone = (stage) => (hasStage(stage) ? tone.stages[stage % STAGE_COLOURS] : tone.line);

// How far the time axis goes: room to grow into while it runs, none when it is over.
function timeLimit(s) {
  const last = s.points.length ? s.points[s.points.length - 1][0] : 0;
  const newest = Math.max(last, s.time_s || 0);
  if (s.ended) return Math.max(newest, 1);
  return LIMITS_S.find((limit) => newest <= limit * 0.97) || newest * 1.05;
}

// Stretches of points with one stage and a value each: [stage, first point, last point].
function stretches(points) {
  const found = [];
  points.forEach(([, progress, stage], k) => {
    const before = found[found.length - 1];
    if (progress === null) return;
    if (before && before[2] === k - 1 && before[0] === stage) before[2] = k;
    else found.push([stage, k, k]);
  });
  return found;
}

const DOT = 3;
const PAD = 6; // so that the dot at the end is whole wherever it is

// Asking a canvas how large it is makes the browser lay out the page, once per card: so it is told instead.
const sizes = new WeakMap();
const resized = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    sizes.set(target, [contentRect.width, contentRect.height]);
    changed.ids.add(target.dataset.session);
  }
  schedule();
});

function drawSpark(canvas, s) {
  const [width, height] = sizes.get(canvas) || [0, 0];
  const scale = window.devicePixelRatio || 1;
  if (!width) return;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  const limit = timeLimit(s);
  const x = (k) => (s.points[k][0] / limit) * (width - (s.ended ? 0 : PAD));
  const y = (k) => height - 1 - s.points[k][1] * (height - 1 - PAD);
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const found = stretches(s.points);
  paintGoal(pen, width, height);
  paintAreas(pen, s, found, x, y, height);
  paintLine(pen, s, x, y);
  if (found.length && !s.ended) paintDot(pen, s, x, y, found[found.length - 1][2]);
}

// Where a rollout counts as done.
function paintGoal(pen, width, height) {
  const level = Math.round(height - 1 - DONE * (height - 1 - PAD)) + 0.5;
  pen.beginPath();
  pen.setLineDash([2, 4]);
  pen.moveTo(0, level);
  pen.lineTo(width, level);
  pen.lineWidth = 1;
  pen.strokeStyle = tone["line-2"];
  pen.stroke();
  pen.setLineDash([]);
}

// The ground below the curve has the colour of the stage. A stage reaches to the first point of the next one.
function paintAreas(pen, s, found, x, y, height) {
  pen.globalAlpha = s.ended ? 0.45 : 0.8;
  found.forEach(([stage, first, last], n) => {
    const next = found[n + 1];
    const stop = next && next[1] === last + 1 ? next[1] : last;
    pen.beginPath();
    pen.moveTo(x(first), height);
    for (let k = first; k <= stop; k++) pen.lineTo(x(k), y(k));
    pen.lineTo(x(stop), height);
    pen.closePath();
    pen.fillStyle = stageTone(stage);
    pen.fill();
  });
  pen.globalAlpha = 1;
}

function paintLine(pen, s, x, y) {
  pen.beginPath();
  let open = false;
  for (let k = 0; k < s.points.length; k++) {
    if (s.points[k][1] === null) open = false;
    else if (open) pen.lineTo(x(k), y(k));
    else {
      pen.moveTo(x(k), y(k));
      open = true;
    }
  }
  Object.assign(pen, { lineWidth: 2, lineJoin: "round", lineCap: "round" });
  pen.strokeStyle = lineTone(s);
  pen.stroke();
}
const lineTone = (s) => (s.ended || s.mark === "silent" ? tone.grey : tone.accent);

function paintDot(pen, s, x, y, k) {
  pen.beginPath();
  pen.arc(x(k), y(k), DOT + 1.5, 0, 7);
  pen.fillStyle = tone.panel;
  pen.fill();
  pen.beginPath();
  pen.arc(x(k), y(k), DOT, 0, 7);
  pen.fillStyle = lineTone(s);
  pen.fill();
}

// The large one. Same look as the report's.
const PLOT = { left: 34, right: 12, top: 14, gap: 8, lane: 18, axis: 24 };

function chartOf(s, width) {
  const plotHeight = width < 520 ? 200 : 300;
  const bottom = PLOT.top + plotHeight;
  const height = bottom + PLOT.gap + PLOT.lane + PLOT.axis;
  const limit = timeLimit(s);
  const x = (time) => PLOT.left + (time / limit) * (width - PLOT.left - PLOT.right);
  const y = (progress) => bottom - progress * plotHeight;
  const at = (k) => x(s.points[k][0]);
  const value = (k) => (s.points[k][1] === null ? NaN : y(s.points[k][1]));
  const size = s.points.length;
  const last = stretches(s.points).at(-1)?.[2];
  const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    chartGrid(x, y, limit),
    svg("path", { class: "area", d: areaPath(size, at, value, bottom) }),
    svg("path", { class: s.ended ? "line over" : "line", d: linePath(size, at, value) }),
    last !== undefined && !s.ended && svg("circle", { class: "tip", r: 5, cx: at(last), cy: value(last) }),
    chartBand(s, x, bottom + PLOT.gap),
    chartTimes(x, limit, width, height));
  return { node, x, y, limit, bottom, width, height };
}

function chartGrid(x, y, limit) {
  const across = (progress) => ({ x1: x(0), x2: x(limit), y1: y(progress), y2: y(progress) });
  const levels = [0, 0.25, 0.5, 0.75, 1];
  return svg("g", { class: "grid" },
    levels.map((level) => svg("line", across(level))),
    [0, 0.5, 1].map((level) => svg("text", { class: "level", x: x(0) - 6, y: y(level) + 4 }, String(level))),
    svg("line", { class: "goal", ...across(DONE) }));
}

function chartBand(s, x, top) {
  const found = stretches(s.points);
  const part = ([stage, first, last], n) => {
    const next = found[n + 1];
    const stop = next && next[1] === last + 1 ? next[1] : last;
    const [left, right] = [x(s.points[first][0]), x(s.points[stop][0])];
    const text = stageName(s, stage);
    const box = { x: left, width: Math.max(right - left - 1, 1), y: top, height: PLOT.lane, rx: 3 };
    const fits = right - left > text.length * 6.4 + 8;
    return svg("g", null,
      svg("title", null, text),
      svg("rect", { class: hasStage(stage) ? `stage-${stage % STAGE_COLOURS}` : "stage-none", ...box }),
      fits && svg("text", { class: "stage-name", x: (left + right) / 2, y: top + 13 }, text));
  };
  return svg("g", { class: "lane" }, found.map(part));
}

function chartTimes(x, limit, width, height) {
  const ticks = ticksOf(limit, width < 460 ? 4 : 8);
  const text = (tick) => svg("text", { x: x(tick), y: height - 6, class: !tick && "first" }, tick ? clock(tick, limit) : "0 s");
  return svg("g", { class: "time" }, ticks.filter((tick) => tick <= limit * 0.985).map(text));
}

const clock = (s, limit) => {
  if (limit < 100) return `${+s.toFixed(1)}`;
  return `${Math.floor(s / 60)}:${String(Math.round(s % 60)).padStart(2, "0")}`;
};
const stageName = (s, stage) => (hasStage(stage) && s.stages && s.stages[stage] !== undefined ? s.stages[stage] : "no stage");
