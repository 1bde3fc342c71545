// The upper part of the page: figures, an evaluation, the distribution of final progress, what is worth a look.

const BINS = 20;

const binOf = (e) => (e.final === null ? null : Math.min(Math.floor(e.final * BINS + 1e-9), BINS - 1));
const binText = (bin) => `${(bin / BINS).toFixed(2)} to ${((bin + 1) / BINS).toFixed(2)}`;

function drawHeadline() {
  const { dataset, progress } = DATA;
  const some = EPISODES.length < dataset.num_episodes ? ` of ${count(dataset.num_episodes)}` : "";
  const facts = [
    `${count(EPISODES.length)}${some} ${NOUN}${EPISODES.length === 1 && !some ? "" : "s"}`,
    `${count(dataset.num_frames)} frames`,
    seconds(dataset.num_frames / FPS),
    `${+FPS.toFixed(2)} fps`,
    dataset.version ? `LeRobot ${dataset.version}` : dataset.when,
  ];
  const source = [
    el("span", null, `${progress.head} head${progress.live ? ", scored live" : ""}`),
    progress.model && el("span", null, "model ", el("code", null, progress.model)),
    dataset.camera && el("span", null, "camera ", el("code", null, dataset.camera)),
  ];
  $("name").textContent = dataset.name;
  fill($("facts"), facts.map((fact) => el("span", null, fact)));
  fill($("source"), source);
  fill($("notices"), DATA.notices.map((text) => el("p", { class: "notice" }, text)));
  drawTiles();
  drawEvaluation();
}

function drawTiles() {
  const finals = known(EPISODES.map((e) => e.final));
  const finished = finals.filter((final) => final > DATA.done).length;
  const flagged = EPISODES.filter((e) => e.flags.length).length;
  const lengths = EPISODES.map((e) => e.length / FPS).sort((a, b) => a - b);
  const range = `${seconds(lengths[0])} to ${seconds(lengths[lengths.length - 1])}`;
  const tiles = [
    { label: "median length", figure: seconds(median(lengths)), more: range },
    {
      label: "flagged", figure: count(flagged), share: flagged / EPISODES.length,
      more: `of ${many(EPISODES.length, NOUN)}`, tone: flagged ? "warn" : "good",
    },
  ];
  if (finals.length) {
    const [share, middle] = [finished / finals.length, mean(finals)];
    const of = `${count(finished)} of ${count(finals.length)}`;
    tiles.unshift(
      { label: "mean final progress", figure: two(middle), share: middle, more: `median ${two(median(finals))}` },
      { label: `end above ${DATA.done}`, figure: percent(share), share, more: of },
    );
  }
  for (const tone of ["success", "failure"]) {
    const own = known(EPISODES.filter((e) => e.outcome === tone).map((e) => e.final));
    const more = many(own.length, NOUN);
    if (own.length) tiles.push({ label: `mean final, ${tone}`, figure: two(mean(own)), share: mean(own), more, tone });
  }
  fill($("tiles"), tiles.map(tile));
}

function tile({ label, figure, share, more, tone }) {
  return el("li", { class: `tile ${tone || ""}` },
    span("tile-label", label), span("figure", figure), span("tile-more", more), share !== undefined && meter(share));
}

function drawEvaluation() {
  if (!DATA.evaluation) return;
  const { figures, diagnosis } = DATA.evaluation;
  const column = (name, n) => el("th", { scope: "col", class: n > 0 && "number" }, name);
  const head = ["figure", "value", "95% interval"].map(column);
  const table = el("table", null,
    el("thead", null, el("tr", null, head, el("th", { "aria-hidden": "true" }))),
    el("tbody", null, figures.map(figureRow)));
  $("evaluation").hidden = false;
  fill($("evaluation-body"),
    diagnosis.length > 0 && el("ul", { class: "diagnosis" }, diagnosis.map((text) => el("li", null, text))),
    figures.length > 0 && div("scroll", table));
}

// A figure with its interval, drawn where all of it lies between 0 and 1.
function figureRow({ label, value, low, high }) {
  const number = (x) => (x === null ? "–" : Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(3));
  const isShare = [low, high, value].every((x) => x !== null && x >= 0 && x <= 1);
  const bar = { left: `${low * 100}%`, width: `${Math.max((high - low) * 100, 0.5)}%` };
  const drawn = el("span", null, el("i", { style: bar }), el("b", { style: { left: `${value * 100}%` } }));
  return el("tr", null,
    el("th", { scope: "row" }, label),
    el("td", { class: "number" }, number(value)),
    el("td", { class: "number faint" }, low === null || high === null ? "" : `${number(low)} to ${number(high)}`),
    el("td", { class: "interval", "aria-hidden": "true" }, isShare && drawn));
}

function drawFinals() {
  const groups = OUTCOMES.length ? [...OUTCOMES, ...(EPISODES.some((e) => !e.outcome) ? [null] : [])] : [null];
  const bins = Array.from({ length: BINS }, () => groups.map(() => 0));
  for (const e of EPISODES) if (e.final !== null) bins[binOf(e)][Math.max(groups.indexOf(e.outcome), 0)]++;
  const totals = bins.map((own) => own.reduce((a, b) => a + b));
  const highest = Math.max(...totals, 1);
  const tall = (n) => ({ height: `${(n / highest) * 100}%` });
  const part = (n, g) => n > 0 && el("i", { class: groups[g] || "plain", style: tall(n) });
  const bar = (own, bin) => {
    const label = `final progress ${binText(bin)}: ${many(totals[bin], NOUN)}`;
    const choose = () => {
      list.bin = list.bin === bin ? null : bin;
      refresh();
    };
    const state = { "aria-label": label, "aria-pressed": String(list.bin === bin), disabled: !totals[bin] };
    return button({ class: "bar", title: label, ...state, onclick: choose },
      totals[bin] > 0 && span("bar-count", count(totals[bin])), own.map(part).reverse());
  };
  const key = (name) => span("key", el("i", { class: name || "plain" }), name || "unknown");
  const open = EPISODES.filter((e) => e.final === null).length;
  fill($("final-bars"), bins.map(bar));
  fill($("final-legend"), OUTCOMES.length > 0 && groups.map(key));
  const told = `${many(open, NOUN)} without a scored end ${open === 1 ? "is" : "are"} not in it.`;
  $("final-note").textContent = open ? told : "";
}

function drawLook() {
  const numbers = KINDS.map((kind) => EPISODES.filter((e) => e.flags.some((flag) => flag.kind === kind)).length);
  const most = Math.max(...numbers, 1);
  const item = (kind, n) => {
    const show = () => {
      toggle(list.kinds, kind.key);
      $("episodes").scrollIntoView({ block: "start" });
    };
    const state = { class: `look-item ${kind.key}`, "aria-pressed": String(list.kinds.has(kind.key)) };
    return numbers[n] > 0 && el("li", null, button({ ...state, onclick: show },
      span("look-name", kind.label), span("look-count", count(numbers[n])), span("look-about", kind.about),
      meter(numbers[n] / most)));
  };
  const nothing = `Nothing odd was found: no stalls, no drops, every ${NOUN} finishes, and every camera moves.`;
  fill($("look"), numbers.some(Boolean) ? KINDS.map(item) : el("li", { class: "note" }, nothing));
}
