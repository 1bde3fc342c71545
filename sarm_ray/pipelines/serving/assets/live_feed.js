// What the server says: one socket, which comes back by itself, and all sessions as they are now.

const sessions = new Map(); // id -> what the board says of it, with all points and its picture
const feed = { state: "connecting", socket: null, tries: 0, timer: 0, retryAt: 0, heardAt: 0, now: 0, arrivals: [] };
const changed = { ids: new Set(), some: false }; // since the page was drawn last
const RETRY_MS = [400, 800, 1600, 3200, 6400, 10000];
const DEAF_MS = 12 * DATA.every_s * 1000; // the server speaks more often, if only to say that nothing is new
const RATE_S = 4;
const TOKEN_KEY = "sarm-ray-token";

function connect() {
  clearTimeout(feed.timer);
  const url = new URL("v1/board", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  const socket = new WebSocket(url);
  const own = (action) => (event) => feed.socket === socket && action(event);
  Object.assign(feed, { socket, state: "connecting", heardAt: Date.now(), arrivals: [] });
  socket.addEventListener("open", own(() => {
    const token = sessionStorage.getItem(TOKEN_KEY);
    socket.send(JSON.stringify({ type: "watch", token }));
  }));
  socket.addEventListener("message", own((event) => hear(JSON.parse(event.data))));
  socket.addEventListener("close", own(lost));
  schedule();
}

function hear(message) {
  feed.heardAt = Date.now();
  if (message.type === "error" && message.code === "token") {
    const refused = sessionStorage.getItem(TOKEN_KEY) !== null;
    sessionStorage.removeItem(TOKEN_KEY);
    forget();
    askForToken(refused);
  } else if (message.type === "board") {
    Object.assign(feed, { state: "live", tries: 0 });
    take(message);
  }
  schedule();
}

// Who may not watch sees nothing, not even what was there before.
function forget() {
  feed.state = "token";
  for (const id of sessions.keys()) changed.ids.add(id);
  sessions.clear();
}

function lost() {
  feed.socket = null;
  if (feed.state !== "token") {
    const wait = RETRY_MS[Math.min(feed.tries++, RETRY_MS.length - 1)] * (0.75 + Math.random() / 2);
    Object.assign(feed, { state: "waiting", retryAt: Date.now() + wait });
    feed.timer = setTimeout(connect, wait);
  }
  schedule();
}

// A link that is dead without having been closed says nothing at all.
function listenForSilence() {
  const quiet = Date.now() - feed.heardAt > DEAF_MS;
  if (feed.socket && quiet && feed.state !== "token") {
    const socket = feed.socket;
    lost();
    socket.close();
  }
  if (feed.state === "waiting") schedule(); // it counts down
}

function retryNow() {
  if (feed.state === "waiting") connect();
}

// The board's message: everything or what is new, as sarm_ray/core/board.py has it.
function take(message) {
  const known = message.full ? new Set(message.sessions.map(({ id }) => id)) : null;
  const gone = known ? [...sessions.keys()].filter((id) => !known.has(id)) : message.gone;
  let frames = 0;
  for (const id of gone) {
    if (sessions.delete(id)) changed.ids.add(id);
  }
  for (const { since, points, thumbnail, ...facts } of message.sessions) {
    const session = sessions.get(facts.id) || { points: [], picture: "" };
    if (session.id) frames += Math.max((facts.num_received || 0) - (session.num_received || 0), 0);
    Object.assign(session, facts);
    session.points.length = Math.min(since, session.points.length);
    session.points.push(...points);
    if (thumbnail !== null) session.picture = thumbnail && `data:image/jpeg;base64,${thumbnail}`;
    sessions.set(facts.id, session);
    changed.ids.add(facts.id);
  }
  feed.now = message.now_s;
  feed.arrivals.push([message.now_s, known ? 0 : frames]);
  while (feed.arrivals[0][0] < message.now_s - RATE_S) feed.arrivals.shift();
}

// Frames per second of all sessions together; null before there is something to count.
function frameRate() {
  const span = feed.now - (feed.arrivals.length ? feed.arrivals[0][0] : feed.now);
  if (span < 1) return null;
  return feed.arrivals.slice(1).reduce((sum, [, frames]) => sum + frames, 0) / span;
}

// #token=... goes into the session's storage, and out of the address, the history and every link that is copied from it.
function tokenFromHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (!wanted.has("token")) return false;
  sessionStorage.setItem(TOKEN_KEY, wanted.get("token"));
  wanted.delete("token");
  history.replaceState(null, "", `#${wanted}`);
  return true;
}
