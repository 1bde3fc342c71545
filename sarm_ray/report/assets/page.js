// What the parts of the report share: its episodes and their points.

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

const EPISODES = FILMED.map((filmed) => {
  const [e, i] = [DATA.episodes, filmed.i];
  return {
    ...filmed,
    final: e.final[i],
    highest: e.highest[i],
    drawdown: e.drawdown[i],
    outcome: outcomeOf(e.outcome[i]),
    facts: e.facts ? e.facts[i] : [],
    flags: e.flags[i].map(([kind, start, stop, amount]) => ({ kind: KINDS[kind], start, stop, amount })),
    points: e.points[i],
    first: 0,
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
  if (kind.key === "overload") return `${percent(amount)} dropped`;
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

// A card shows four pictures of the strip, or they would be too small on a phone.
const CARD_PLACES = [0, 1, 2, 3].map((n) => Math.round((n * (STRIP_FRAMES - 1)) / 3));
function strip(e) {
  if (!e.strip) return el("div", { class: "strip empty" }, e.problem ? "video cannot be read" : "no pictures");
  return el(
    "div",
    { class: "strip", role: "img", "aria-label": `${CARD_PLACES.length} pictures of ${e.name}` },
    CARD_PLACES.map((place) => picture(e, place)),
  );
}
