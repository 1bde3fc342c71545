// RA-BC: the weights that a kappa gives, as core/rabc computes them, and which stretches of which episodes drop out.

const W = DATA.weights;
const DELTA_BINS = 64;
const MOST_SEGMENTS = 60;
const SHOWN_SEGMENTS = 8;
const MODES = { zero: { label: "weight 0", below: 1e-9 }, half: { label: "under ½", below: 0.5 } };
const PRESETS = {
  "LeRobot's": "LeRobot's default",
  auto: "three of four deltas are not above it",
  weight: "the kappa that gives this mean weight",
};
const rabc = { mode: "zero", all: false, histogram: null, timer: 0 };

const kappaAt = (edge) => W.edges[edge] / 1e6;
const kappaNow = () => kappaAt(Number($("kappa").value));
const soften = (delta) => Math.min(Math.max((delta - (W.mean - 2 * W.std)) / (4 * W.std + 1e-6), 0), 1);

// The weight of one frame: no delta 1, above kappa 1, falling 0, between them a share.
function weightOf(delta, kappa) {
  if (Number.isNaN(delta) || delta > kappa) return 1;
  return delta < 0 ? 0 : soften(delta);
}

// Sums over the bins on both sides of an edge, for every edge.
const SUMS = W && (() => {
  let [above, soft, zero, one] = [W.count.reduce((sum, n) => sum + n, 0), 0, 0, 0];
  return W.edges.map((_, edge) => {
    above -= W.count[edge];
    soft += W.soft[edge];
    zero += W.zero[edge];
    one += W.one[edge];
    const sums = { weight: W.nan + above + soft, zero: W.falling + zero, full: above + one };
    return Object.fromEntries(Object.entries(sums).map(([name, sum]) => [name, sum / W.frames]));
  });
})();

function verdict(weight) {
  const [low, high] = W.healthy;
  if (weight > high) return ["bad", "too high: nearly plain imitation"];
  return weight < low ? ["bad", "too low: few frames count"] : ["good", `healthy (${low} to ${high})`];
}

// Deltas of the stored frames, as a histogram over the range that matters.
function deltaHistogram() {
  const own = DELTAS.filter((code) => code !== C.no_delta).sort(); // a typed array sorts by value
  const at = (share) =>
    own.length ? own[Math.min(Math.floor(share * own.length), own.length - 1)] / C.delta_scale : 0;
  const high = Math.max(at(0.995), kappaAt(W.edges.length - 1) * 0.6, 1e-3);
  const low = Math.min(at(0.005), -high * 0.08);
  const counts = new Array(DELTA_BINS).fill(0);
  for (const code of own) {
    const bin = Math.floor(((code / C.delta_scale - low) / (high - low)) * DELTA_BINS);
    counts[Math.min(Math.max(bin, 0), DELTA_BINS - 1)]++;
  }
  return { low, high, counts };
}

function drawDeltas(kappa) {
  const { low, high, counts } = rabc.histogram;
  const most = Math.max(...counts, 1);
  const bar = (n, bin) => {
    const height = n ? Math.max((n / most) * 96, 1.5) : 0; // a few frames are to be seen too
    const middle = low + ((bin + 0.5) / DELTA_BINS) * (high - low);
    const tone = middle < 0 ? "falls" : middle > kappa ? "full" : "soft";
    return svg("rect", { class: tone, x: bin + 0.08, width: 0.84, y: 100 - height, height });
  };
  const place = (value) => `${Math.min(Math.max((value - low) / (high - low), 0), 1) * 100}%`;
  $("deltas").setAttribute("viewBox", `0 0 ${DELTA_BINS} 100`);
  fill($("deltas"), counts.map(bar));
  $("kappa-line").style.left = place(kappa);
  const zero = el("span", { style: { left: place(0) } }, "0");
  fill($("deltas-axis"), zero, span("first", low.toFixed(2)), span("last", `+${high.toFixed(2)}`));
}

// Stretches of frames that count little, those first that lose the most weight.
function findSegments(kappa) {
  const { below } = MODES[rabc.mode];
  const found = [];
  for (const e of EPISODES) {
    let open = null;
    for (let k = 0; k < e.points; k++) {
      const weight = weightOf(deltaAt(e.first + k), kappa);
      const frame = frameOf(e, k);
      const stop = k + 1 < e.points ? frameOf(e, k + 1) : e.length;
      if (weight < below) {
        open = open || { e, start: frame, stop, lost: 0 };
        open.stop = stop;
        open.lost += (1 - weight) * (stop - frame);
      } else if (open) {
        found.push(open);
        open = null;
      }
    }
    if (open) found.push(open);
  }
  const lost = found.reduce((sum, each) => sum + each.stop - each.start, 0);
  const episodes = new Set(found.map((each) => each.e)).size;
  found.sort((a, b) => b.lost - a.lost);
  return { found: found.slice(0, MOST_SEGMENTS), number: found.length, lost, episodes };
}

function drawSegments() {
  const { found, number, lost, episodes } = findSegments(kappaNow());
  const longest = Math.max(...found.map((each) => each.lost), 1);
  const stretches = number === 1 ? "1 stretch" : `${count(number)} stretches`;
  const told = `${stretches} in ${many(episodes, NOUN)}, ${seconds(lost / FPS)} together; the heaviest first.`;
  const row = ({ e, start, stop, lost: own }) => {
    const [from, to] = [start / FPS, stop / FPS];
    return el("li", null, el("a", { href: `#ep=${e.number}&t=${from.toFixed(2)}` },
      span("segment-name", e.name),
      span("segment-time", `${from.toFixed(1)}–${to.toFixed(1)} s`),
      span("segment-length", seconds(to - from)),
      meter(own / longest)));
  };
  const more = found.length - SHOWN_SEGMENTS;
  const showAll = () => {
    rabc.all = !rabc.all;
    drawSegments();
  };
  $("segments-note").textContent = number ? told : "Nothing drops out.";
  fill($("segments"),
    (rabc.all ? found : found.slice(0, SHOWN_SEGMENTS)).map(row),
    more > 0 && el("li", null, button({ onclick: showAll }, rabc.all ? "Show fewer" : `Show ${more} more`)));
}

const trainFlags = (kappa) => [...W.flags, `--sample_weighting.kappa=${+kappa.toFixed(6)}`];

function drawWeights() {
  const edge = Number($("kappa").value);
  const kappa = kappaAt(edge);
  const { weight } = SUMS[edge];
  const [tone, text] = verdict(weight);
  $("kappa-value").textContent = String(+kappa.toFixed(kappa < 0.01 ? 5 : 4));
  $("kappa").setAttribute("aria-valuetext", `kappa ${kappa.toFixed(4)}, mean weight ${weight.toFixed(2)}`);
  $("mean-weight").textContent = weight.toFixed(2);
  $("mean-weight").dataset.value = String(weight);
  $("verdict").className = `badge ${tone}`;
  $("verdict").textContent = text;
  $("flags").textContent = trainFlags(kappa).join(" \\\n  ");
  for (const chip of $("presets").children) {
    chip.setAttribute("aria-pressed", String(Number(chip.dataset.edge) === edge));
  }
  drawShares(SUMS[edge]);
  drawDeltas(kappa);
  if (viewer.episode) drawWeightRuns();
  clearTimeout(rabc.timer);
  rabc.timer = setTimeout(drawSegments, 60); // a look at every stored frame, not for every pixel of a drag
}

function drawShares({ zero, full }) {
  const nan = W.nan / W.frames;
  const parts = [
    ["full", "weight 1", full],
    ["soft", "between", Math.max(1 - zero - full - nan, 0)],
    ["zero", "weight 0", zero],
    ["nan", "no delta, weight 1", nan],
  ].filter(([name, , share]) => name !== "nan" || share > 0);
  const key = ([name, label, share]) => {
    const figure = el("strong", { "data-share": name }, percent(share));
    return el("li", { class: "key" }, el("i", { class: name }), `${label} `, figure);
  };
  fill($("shares"), parts.map(([name, , share]) => el("i", { class: name, style: { width: `${share * 100}%` } })));
  fill($("shares-legend"), parts.map(key));
  $("shares").setAttribute("aria-label", parts.map(([, label, share]) => `${label}: ${percent(share)}`).join(", "));
}

async function copyFlags() {
  let done = true;
  try {
    await navigator.clipboard.writeText(trainFlags(kappaNow()).join(" "));
  } catch {
    getSelection().selectAllChildren($("flags"));
    done = document.execCommand("copy");
  }
  $("copy").textContent = done ? "Copied" : "Press Ctrl+C";
  setTimeout(() => {
    $("copy").textContent = "Copy flags";
  }, 2000);
}

function drawModes() {
  const choose = (mode) => {
    Object.assign(rabc, { mode, all: false });
    drawModes();
    drawSegments();
  };
  fill($("segment-mode"), Object.entries(MODES).map(([mode, { label }]) =>
    button({ class: "", "aria-pressed": String(mode === rabc.mode), onclick: () => choose(mode) }, label)));
}

function startWeights() {
  if (!W) return $("weights").remove();
  const setEdge = (edge) => {
    $("kappa").value = edge;
    drawWeights();
  };
  const preset = ([label, edge]) =>
    button({ class: "chip", "data-edge": edge, title: PRESETS[label.split(" ")[0]], onclick: () => setEdge(edge) },
      label, span("faint", ` κ ${+kappaAt(edge).toPrecision(3)}`));
  const horizon = `${many(W.chunk_size, "frame")}, ${seconds(W.chunk_size / FPS)}`;
  $("weights-about").textContent = `progress made over the next ${horizon} (the policy's chunk_size)`;
  $("kappa").max = W.edges.length - 1;
  $("kappa").value = W.start;
  rabc.histogram = deltaHistogram();
  fill($("presets"), W.presets.map(preset));
  drawModes();
  $("kappa").addEventListener("input", drawWeights);
  $("copy").addEventListener("click", copyFlags);
  drawWeights();
  drawSegments();
}
