// The page: counts, order and filter, what is shown while there is nothing, and when all of it is drawn.

const list = { sort: "attention", query: "", only: null, shown: [], stale: true, orderedAt: 0, pointedAt: 0 };
const CALM_MS = 2000; // cards change places no more often, and not under a hand
const RANKS = ["regressing", "stalled", "silent", "running", "done", "ended"];
const rank = (s) => (RANKS.indexOf(s.mark) + RANKS.length + 1) % (RANKS.length + 1);
const byText = (a, b) => a.id.localeCompare(b.id, "en", { numeric: true });
const newest = (a, b) => (b.started_s || 0) - (a.started_s || 0) || byText(a, b);
const SORTS = {
  attention: { label: "Attention", order: (a, b) => rank(a) - rank(b) || newest(a, b) },
  newest: { label: "Newest", order: newest },
  name: { label: "Name", order: byText },
  progress: { label: "Progress", order: (a, b) => (b.progress ?? -1) - (a.progress ?? -1) || byText(a, b) },
};
const TILES = [
  { key: "running", label: "Running", is: (s) => !s.ended },
  { key: "stalled", label: "Stalled", is: (s) => s.mark === "stalled" },
  { key: "regressing", label: "Regressing", is: (s) => s.mark === "regressing" },
  { key: "ended", label: "Ended", is: (s) => s.ended },
];
const tiles = new Map();

// Drawn at most once per picture of the screen, and not at all while nobody sees it.
function schedule() {
  if (!changed.some) requestAnimationFrame(draw);
  changed.some = true;
}

function draw() {
  changed.some = false;
  const ids = [...changed.ids];
  changed.ids.clear();
  for (const id of ids) {
    if (!sessions.has(id)) dropCard(id);
    else if (!cards.has(id)) cards.set(id, newCard(id));
  }
  drawLink();
  const asked = feed.state === "token";
  $("ask").hidden = !asked;
  $("overview").hidden = $("rollouts").hidden = asked || sessions.size === 0;
  $("empty").hidden = asked || sessions.size > 0 || feed.state !== "live";
  drawCounts();
  arrange(ids);
  for (const id of ids) if (cards.has(id)) updateCard(cards.get(id), sessions.get(id));
  drawView();
}

function drawLink() {
  const wait = Math.max(Math.ceil((feed.retryAt - Date.now()) / 1000), 1);
  const said = {
    live: "live",
    connecting: sessions.size ? "reconnecting…" : "connecting…",
    waiting: `no connection; next try in ${wait} s`,
    token: "waiting for a token",
  }[feed.state];
  const link = $("link");
  setAttribute(link, "data-state", feed.state);
  document.documentElement.classList.toggle("stale", feed.state !== "live");
  if (link.dataset.said === said) return;
  link.dataset.said = said;
  const now = feed.state === "waiting" && el("button", { type: "button", class: "chip", onclick: retryNow }, "Try now");
  fill(link, el("i"), el("span", null, said), now);
}

function startCounts() {
  const tile = ({ key, label }) => {
    const own = { figure: span("figure", "0"), more: span("tile-more") };
    const toggle = () => {
      list.only = list.only === key ? null : key;
      rearrange();
    };
    own.press = el("button", { type: "button", class: `tile ${key}`, "aria-pressed": "false", onclick: toggle },
      span("tile-label", label), own.figure, own.more);
    tiles.set(key, own);
    return el("li", null, own.press);
  };
  const rate = { figure: span("figure", "–"), more: span("tile-more") };
  tiles.set("frames", rate);
  fill($("tiles"), TILES.map(tile), el("li", null, div("tile frames", span("tile-label", "Frames per second"), rate.figure, rate.more)));
}

function drawCounts() {
  const all = [...sessions.values()];
  const num = (is) => all.filter(is).length;
  const having = (mark) => num((s) => s.mark === mark);
  const outcome = (name) => num((s) => s.ended && s.outcome === name);
  const parts = (pairs) => pairs.filter(([n]) => n > 0).map(([n, name]) => `${count(n)} ${name}`).join(", ");
  for (const { key, is } of TILES) {
    const n = num(is);
    setText(tiles.get(key).figure, count(n));
    tiles.get(key).press.classList.toggle("some", n > 0);
    setAttribute(tiles.get(key).press, "aria-pressed", String(list.only === key));
  }
  setText(tiles.get("running").more, parts([[having("done"), "done"], [having("silent"), "silent"]]));
  setText(tiles.get("ended").more, parts([[outcome("success"), "success"], [outcome("failure"), "failure"]]));
  const rate = frameRate();
  const dropped = all.reduce((sum, s) => sum + (s.num_dropped || 0), 0);
  setText(tiles.get("frames").figure, rate === null ? "–" : count(Math.round(rate)));
  setText(tiles.get("frames").more, dropped ? `${count(dropped)} dropped` : "none dropped");
  tiles.get("frames").more.classList.toggle("some", dropped > 0);
}

function isWanted(s, words) {
  if (list.only && !TILES.find(({ key }) => key === list.only).is(s)) return false;
  const text = [s.id, s.task, s.mark, s.outcome, s.replica, hasStage(s.stage) && stageName(s, s.stage)].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

// Puts the cards in order. New ones and those that left change it at once, marks and values when nobody is pointing.
function arrange(ids) {
  const now = Date.now();
  const held = now - list.orderedAt < CALM_MS || now - list.pointedAt < CALM_MS;
  const moved = ids.some((id) => !sessions.has(id) || !cards.get(id).root.isConnected);
  if (held && !list.stale && !moved) return;
  Object.assign(list, { stale: false, orderedAt: now });
  const words = list.query.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...sessions.values()].filter((s) => isWanted(s, words)).sort(SORTS[list.sort].order);
  list.shown = wanted.map(({ id }) => id);
  place(list.shown.map((id) => cards.get(id).root));
  const every = many(sessions.size, "rollout");
  setText($("count"), list.shown.length === sessions.size ? every : `${count(list.shown.length)} of ${every}`);
  $("nothing").hidden = list.shown.length > 0 || sessions.size === 0;
}

// Moves as few as it can; what had the focus has it afterwards.
function place(wanted) {
  const home = $("cards");
  const active = document.activeElement;
  const keep = new Set(wanted);
  for (const child of [...home.children]) if (!keep.has(child)) child.remove();
  let at = home.firstChild;
  for (const node of wanted) {
    if (node === at) at = at.nextSibling;
    else home.insertBefore(node, at);
  }
  if (active && home.contains(active) && active !== document.activeElement) active.focus({ preventScroll: true });
}

function rearrange() {
  list.stale = true;
  schedule();
}

function clearFilters() {
  Object.assign(list, { query: "", only: null });
  $("search").value = "";
  rearrange();
}

function startList() {
  fill($("sort"), Object.entries(SORTS).map(([key, { label }]) => el("option", { value: key }, label)));
  fill($("nothing"), el("span", null, "No rollout is like that. "), button({ onclick: clearFilters }, "Clear filters"));
  $("sort").addEventListener("change", ({ target }) => {
    list.sort = target.value;
    rearrange();
  });
  $("search").addEventListener("input", ({ target }) => {
    list.query = target.value;
    rearrange();
  });
  $("cards").addEventListener("pointermove", () => (list.pointedAt = Date.now()));
  setInterval(schedule, CALM_MS); // a mark or a value may have changed while the order was held
}

function askForToken(refused) {
  $("ask-about").textContent = refused
    ? "The token that was sent is not the server's. It is in the file that sarm-ray serve was given as --token-file."
    : "It is in the file that sarm-ray serve was given as --token-file. This tab keeps it until it is closed.";
  $("ask").classList.toggle("refused", refused);
  $("ask").hidden = false;
  $("token").focus();
}

function startAsking() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const token = $("token").value.trim();
    if (!token) return;
    sessionStorage.setItem(TOKEN_KEY, token);
    $("token").value = "";
    connect();
  });
}

function startEmpty() {
  const { task, fps, state_dim, token } = DATA.example;
  const said = [JSON.stringify(location.origin.replace(/^http/, "ws")), `task=${JSON.stringify(task)}`, `fps=${fps}`, `state_dim=${state_dim}`];
  const example = [
    "from sarm_ray.client import LiveScorer",
    `with LiveScorer(${said.join(", ")}${token ? ", token=TOKEN" : ""}) as scorer:`,
    "    while running:",
    "        scorer.add(camera.read(), robot.state())  # RGB uint8, numbers",
    "        print(scorer.progress)",
  ].join("\n");
  $("example").textContent = example;
  $("empty-more").textContent = "It never waits for the server, and comes back by itself when the connection breaks.";
  $("copy").hidden = !navigator.clipboard;
  $("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(example);
    $("copy").textContent = "Copied";
    setTimeout(() => ($("copy").textContent = "Copy"), 1500);
  });
}

function startPage() {
  readTones();
  startCounts();
  startList();
  startAsking();
  startEmpty();
  startView();
  const again = () => {
    readTones();
    for (const id of sessions.keys()) changed.ids.add(id);
    schedule();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  window.addEventListener("online", retryNow);
  document.addEventListener("visibilitychange", () => document.hidden || retryNow());
  setInterval(listenForSilence, 1000);
  tokenFromHash();
  connect();
  followHash(false);
}
