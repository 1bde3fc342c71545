// The page around the episodes: what it is about, which are shown in what order, keys, and the download.

const SORTS = {
  notes: { label: "Notes first", of: (e) => -e.flags.length },
  number: { label: "Episode", of: (e) => e.number },
  length: { label: "Longest first", of: (e) => -e.length },
};
const list = { sort: "notes", query: "", noted: false, edited: false, shown: [], active: null, saved: "" };

function drawHead() {
  const flagged = EPISODES.filter((e) => e.flags.length).length;
  const left = DATA.left_out;
  $("name").textContent = DATA.dataset.name;
  fill($("facts"), [many(EPISODES.length, "episode"), `${count(flagged)} with notes`, KINDS.join(" and "), `${+FPS.toFixed(2)} fps`, DATA.dataset.camera]
    .filter(Boolean).map((text) => el("span", null, text)));
  $("more").textContent = left ? `${many(left, "more episode")} ${left === 1 ? "is" : "are"} not on this page.` : "";
  fill($("notices"), DATA.notices.map((text) => el("p", { class: "notice" }, text)));
  const others = left > 1 ? `, and none of the ${count(left)} others` : left ? ", and not the other one" : "";
  $("about-csv").textContent =
    `The CSV has every episode of this page that has subtasks, filtered or not, corrected or not${others}.`;
  $("command").textContent = DATA.command;
}

function isWanted(e, words) {
  if ((list.noted && !e.flags.length) || (list.edited && !isEdited(e))) return false;
  const names = e.timelines.flatMap((line) => line.segments.map(({ name }) => name));
  const texts = [e.task, ...names, ...e.flags.map(({ text }) => text)].join("\n").toLowerCase();
  return words.every((word) => (/^\d+$/.test(word) ? String(e.number) === word : texts.includes(word)));
}

function refresh() {
  const words = list.query.toLowerCase().split(/\s+/).filter(Boolean);
  const { of } = SORTS[list.sort];
  list.shown = EPISODES.filter((e) => isWanted(e, words)).sort((a, b) => of(a) - of(b) || a.number - b.number);
  const wanted = new Set(list.shown);
  for (const e of EPISODES) {
    e.view.article.hidden = !wanted.has(e);
    if (!wanted.has(e)) e.view.transport?.pause();
  }
  $("cards").append(...list.shown.map((e) => e.view.article), $("nothing"));
  $("nothing").hidden = list.shown.length > 0;
  const every = many(EPISODES.length, "episode");
  $("count").textContent = list.shown.length < EPISODES.length ? `${count(list.shown.length)} of ${every}` : every;
  drawFilters();
}

function drawFilters() {
  const chip = (key, label, number) => (number > 0 || list[key]) &&
    button({ class: "chip", "aria-pressed": String(list[key]), onclick: () => change({ [key]: !list[key] }) }, `${label} (${count(number)})`);
  fill($("filters"), chip("noted", "with notes", EPISODES.filter((e) => e.flags.length).length),
    chip("edited", "corrected", EPISODES.filter(isEdited).length));
}

function change(changes) {
  Object.assign(list, changes);
  refresh();
}
function clearFilters() {
  $("search").value = "";
  change({ query: "", noted: false, edited: false });
}

// What is corrected, beside the button that saves it.
function noteChange() {
  const edited = EPISODES.filter(isEdited);
  const starts = edited.flatMap((e) => e.timelines.map(changesOf)).reduce((sum, each) => sum + each, 0);
  const said = starts ? `${many(starts, "correction")} in ${many(edited.length, "episode")}` : "Nothing corrected yet";
  const kept = list.saved === correctedCsv();
  $("changes").textContent = kept && starts ? `${said}, downloaded` : said;
  drawFilters();
}

function download() {
  const text = correctedCsv();
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  el("a", { href: url, download: DATA.file }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  list.saved = text;
  noteChange();
}

function activate(e) {
  if (list.active === e) return;
  list.active?.view.article.classList.remove("active");
  list.active = e;
  e.view.article.classList.add("active");
}
function turn(by) {
  const place = list.shown.indexOf(list.active);
  const next = list.shown[place < 0 ? 0 : place + by];
  if (!next) return;
  list.active?.view.transport?.pause();
  activate(next);
  next.view.article.focus({ preventScroll: true });
  next.view.article.scrollIntoView({ block: "start" });
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
  const e = list.shown.includes(list.active) ? list.active : list.shown[0];
  if (!e) return;
  const onLanes = event.target === e.view.lanes;
  const action = {
    ArrowLeft: () => step(e, -1),
    ArrowRight: () => step(e, 1),
    Home: onLanes ? () => seekFrame(e, 0) : null,
    End: onLanes ? () => seekFrame(e, e.length - 1) : null,
    " ": event.target.tagName === "BUTTON" ? null : () => playOrPause(e),
    n: () => turn(1),
    p: () => turn(-1),
  }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  if (!["n", "p"].includes(event.key.toLowerCase())) activate(e);
  action();
}

function startPage() {
  drawHead();
  fill($("cards"), EPISODES.map(review), el("p", { id: "nothing", class: "nothing" }, "No episode is like that. ", button({ onclick: clearFilters }, "Clear filters")));
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) load(EPISODES.find((e) => e.view.article === target));
  }, { rootMargin: "600px 0px" });
  fill($("sort"), Object.entries(SORTS).map(([key, { label }]) => el("option", { value: key }, label)));
  $("sort").addEventListener("change", ({ target }) => change({ sort: target.value }));
  $("search").addEventListener("input", ({ target }) => change({ query: target.value }));
  $("download").addEventListener("click", download);
  document.addEventListener("keydown", onKey);
  window.addEventListener("beforeunload", (event) => {
    if (EPISODES.some(isEdited) && list.saved !== correctedCsv()) event.preventDefault();
  });
  refresh();
  noteChange();
  for (const e of EPISODES) near.observe(e.view.article);
  requestAnimationFrame(function again() {
    EPISODES.forEach(follow);
    requestAnimationFrame(again);
  });
}
