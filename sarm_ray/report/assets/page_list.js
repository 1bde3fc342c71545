// The episodes: filters, order, cards, pages.

const PER_PAGE = 24;
const kindsOf = (e) => new Set(e.flags.map((flag) => flag.kind));
const SORTS = {
  final: { label: "Quality (final progress)", of: (e) => e.final, ways: ["worst first", "best first"] },
  highest: { label: "Highest progress", of: (e) => e.highest, ways: ["lowest first", "highest first"] },
  drawdown: { label: "Drawdown", of: (e) => e.drawdown, down: true, ways: ["smallest first", "largest first"] },
  flags: { label: "Flags", of: (e) => kindsOf(e).size, down: true, ways: ["fewest first", "most first"] },
  number: { label: DATA.episodes.name ? "Start" : TITLE, of: (e) => e.number, ways: ["first to last", "last to first"] },
  length: { label: "Length", of: (e) => e.length, down: true, ways: ["shortest first", "longest first"] },
};
const list = {
  sort: "final", down: false, kinds: new Set(), outcomes: new Set(), bin: null, query: "",
  page: 0, shown: [],
};

function toggle(set, key) {
  if (!set.delete(key)) set.add(key);
  refresh();
}

function drawFilters() {
  const chip = (label, pressed, onclick, tone = "") =>
    button({ class: `chip ${tone}`, "aria-pressed": String(pressed), onclick }, label);
  const isFlagged = (kind) => EPISODES.some((e) => e.flags.some((flag) => flag.kind === kind));
  const clearBin = () => {
    list.bin = null;
    refresh();
  };
  const kindChip = ({ key, label }) => chip(label, list.kinds.has(key), () => toggle(list.kinds, key), key);
  const any = list.kinds.size || list.outcomes.size || list.bin !== null || list.query;
  fill($("filters"),
    KINDS.filter(isFlagged).map(kindChip),
    KINDS.some(isFlagged) && chip("not flagged", list.kinds.has(""), () => toggle(list.kinds, "")),
    OUTCOMES.map((name) => chip(name, list.outcomes.has(name), () => toggle(list.outcomes, name), name)),
    list.bin !== null && chip(`final ${binText(list.bin)} ×`, true, clearBin),
    any && chip("clear all", false, clearFilters, "clear"));
}

function clearFilters() {
  list.kinds.clear();
  list.outcomes.clear();
  Object.assign(list, { bin: null, query: "" });
  $("search").value = "";
  refresh();
}

function isWanted(e, words) {
  const flagged = e.flags.length ? e.flags.some((flag) => list.kinds.has(flag.kind.key)) : list.kinds.has("");
  if (list.kinds.size && !flagged) return false;
  if (list.outcomes.size && !list.outcomes.has(e.outcome)) return false;
  if (list.bin !== null && binOf(e) !== list.bin) return false;
  const task = `${e.task} ${DATA.episodes.name ? e.name : ""}`.toLowerCase();
  const isLike = (word) => (e.outcome || "").startsWith(word) || e.flags.some((flag) => flag.kind.label.includes(word));
  return words.every((word) => task.includes(word) || (/^\d+$/.test(word) ? String(e.number) === word : isLike(word)));
}

function arrange() {
  const words = list.query.toLowerCase().split(/\s+/).filter(Boolean);
  const { of } = SORTS[list.sort];
  const sign = list.down ? -1 : 1;
  const order = (a, b) => {
    const [x, y] = [of(a), of(b)];
    if (x === null && y === null) return a.number - b.number;
    if (x === null || y === null) return x === null ? 1 : -1; // what is not known comes last
    return sign * (x - y) || a.number - b.number;
  };
  list.shown = EPISODES.filter((e) => isWanted(e, words)).sort(order);
}

// The curve of a card: progress over the whole width, what is flagged in colour.
function sparkline(e) {
  const [width, height] = [300, 56];
  const step = Math.max(Math.ceil(e.points / 150), 1);
  const size = Math.ceil((e.points - 1) / step) + 1;
  const at = (k) => Math.min(k * step, e.points - 1);
  const x = (k) => (frameOf(e, at(k)) / Math.max(e.length - 1, 1)) * width;
  const y = (k) => height - 2 - progressAt(e, at(k)) * (height - 4);
  const marks = e.flags.filter((f) => ["stall", "drop", "unscored"].includes(f.kind.key));
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    marks.map((f) =>
      svg("rect", {
        class: `mark ${f.kind.key}`,
        x: (f.start / e.length) * width,
        y: 0,
        width: Math.max(((f.stop - f.start) / e.length) * width, 2),
        height,
      }),
    ),
    svg("line", {
      class: "goal",
      x1: 0,
      x2: width,
      y1: height - 2 - DATA.done * (height - 4),
      y2: height - 2 - DATA.done * (height - 4),
    }),
    svg("path", { class: "area", d: areaPath(size, x, y, height) }),
    svg("path", { class: "line", d: linePath(size, x, y) }),
  );
}

const outcomeBadge = (e) => e.outcome && span(`outcome ${e.outcome}`, e.outcome);

function card(e) {
  const final = e.final === null ? "end not scored" : two(e.final);
  const tone = e.final === null ? "open" : e.final > DATA.done ? "done" : "";
  const kinds = [...kindsOf(e)].map((kind) => kind.label);
  const said = [e.name, `final progress ${final}`, seconds(e.length / FPS), ...kinds].join(", ");
  const foot = [el("span", null, seconds(e.length / FPS)), el("span", null, `highest ${two(e.highest)}`)];
  const body = div("card-body",
    div("card-head", span("card-name", e.name), outcomeBadge(e), span(`card-final ${tone}`, final)),
    sparkline(e),
    div("card-foot", foot, e.video !== null && span("has-video", "video"), e.facts.length > 0 && span("card-when", e.facts[0])),
    DATA.episodes.tasks.length > 1 && el("p", { class: "card-task" }, e.task),
    e.flags.length > 0 && div("card-flags", flagChips(e)));
  const attributes = { class: "card", href: `#ep=${e.number}`, "data-episode": e.number, "aria-label": said };
  return el("li", null, el("a", attributes, strip(e), body));
}

function drawCards() {
  const pages = Math.max(Math.ceil(list.shown.length / PER_PAGE), 1);
  list.page = Math.min(list.page, pages - 1);
  const first = list.page * PER_PAGE;
  const own = list.shown.slice(first, first + PER_PAGE);
  const nothing = [`No ${NOUN} is like that. `, button({ onclick: clearFilters }, "Clear filters")];
  const every = many(EPISODES.length, NOUN);
  const all = list.shown.length === EPISODES.length ? every : `${count(list.shown.length)} of ${every}`;
  fill($("cards"), own.length ? own.map(card) : el("li", { class: "nothing" }, nothing));
  $("count").textContent = pages > 1 ? `${count(first + 1)}–${count(first + own.length)} of ${all}` : all;
  drawPager(pages);
}

function drawPager(pages) {
  const go = (page) => {
    list.page = page;
    drawCards();
    $("episodes").scrollIntoView({ block: "start" });
  };
  const turnTo = (page, label) => button({ disabled: page < 0 || page >= pages, onclick: () => go(page) }, label);
  const near = new Set([0, list.page - 1, list.page, list.page + 1, pages - 1]);
  const shown = [...near].filter((page) => page >= 0 && page < pages);
  const numbers = shown.flatMap((page, n) => {
    const here = { "aria-current": page === list.page && "page", "aria-label": `Page ${page + 1}` };
    const gap = n > 0 && page > shown[n - 1] + 1 && span("dots", "…");
    return [gap, button({ ...here, onclick: () => go(page) }, String(page + 1))];
  });
  fill($("pager"), pages > 1 && [turnTo(list.page - 1, "Previous"), ...numbers, turnTo(list.page + 1, "Next")]);
}

// Draws all that depends on filters and order; what had the focus has it afterwards.
function refresh() {
  const active = document.activeElement;
  const home = active && active.closest("#final-bars, #look, #filters");
  const place = home ? [...home.querySelectorAll("button")].indexOf(active) : -1;
  const way = SORTS[list.sort].ways[Number(list.down)];
  list.page = 0;
  arrange();
  drawFinals();
  drawLook();
  drawFilters();
  drawCards();
  $("direction").textContent = way;
  $("direction").setAttribute("aria-label", `Order: ${way}; press to turn it round`);
  if (place >= 0) [...home.querySelectorAll("button")].at(place)?.focus({ preventScroll: true });
}

function startList() {
  const change = (changes) => {
    Object.assign(list, changes);
    refresh();
  };
  fill($("sort"), Object.entries(SORTS).map(([key, { label }]) => el("option", { value: key }, label)));
  const sortBy = (sort) => change({ sort, down: Boolean(SORTS[sort].down) });
  $("sort").addEventListener("change", ({ target }) => sortBy(target.value));
  $("direction").addEventListener("click", () => change({ down: !list.down }));
  $("search").addEventListener("input", ({ target }) => change({ query: target.value }));
  if (DATA.episodes.name) $("search").placeholder = "session, task or flag";
  $("episodes-title").textContent = `${TITLE}s`;
  drawHeadline();
  refresh();
}
