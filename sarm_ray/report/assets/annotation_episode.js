// One episode to check: its video, a timeline per kind under it with one cursor across, and a table of its subtasks.

function review(e) {
  const stage = el("div", { class: "stage", style: { "--aspect": String(DATA.media.aspect) } }, e.strip ? picture(e, 0) : div("picture empty", "no pictures"));
  const cursor = el("i", { class: "playhead", "aria-hidden": "true" });
  const range = { "aria-label": "Frame", "aria-valuemin": "0", "aria-valuemax": String(e.length - 1) };
  const lanes = el("div", { class: "lanes", tabindex: "0", role: "slider", ...range }, e.timelines.map(lane), cursor);
  const readout = el("p", { class: "readout" });
  const controls = { playOrPause: () => playOrPause(e), step: (by) => step(e, by), transport: () => e.view.transport };
  const transport = transportBar(controls);
  const badge = span("badge good edited", "corrected");
  badge.hidden = true;
  const head = el("header", { class: "review-head" },
    el("h3", { id: `title-${e.number}` }, `Episode ${e.number}`), span("faint", `${seconds(e.length / FPS)}, ${many(e.length, "frame")}`),
    e.flags.map(({ key, text }) => el("span", { class: `flag ${key}`, title: DATA.flags[key] }, text)), badge,
    el("p", { class: "task" }, e.task));
  const watch = div("watch", stage, lanes, timeAxis(e), div("controls", transport, readout));
  const article = el("article", { class: "panel review", "data-episode": e.number, "aria-labelledby": `title-${e.number}`, tabindex: "-1" },
    head, div("review-body", watch, div("tables", e.timelines.map((line) => segmentTable(e, line)))));
  e.view = { article, stage, lanes, cursor, readout, badge, play: transport.querySelector(".play"), transport: null, shown: -1 };
  dragToSeek(lanes, (share) => seekFrame(e, Math.floor(share * e.length)));
  for (const kind of ["pointerdown", "focusin"]) article.addEventListener(kind, () => activate(e));
  article.addEventListener("click", (event) => { // or the space bar would press the button again
    if (event.detail) event.target.closest("button")?.blur();
  });
  e.timelines.forEach((line) => drawTimeline(e, line));
  return article;
}

function lane(line) {
  line.lane = div("timeline");
  return div("lane-of", span("lane-kind", line.kind), line.lane);
}

function timeAxis(e) {
  const tick = (time) => el("span", { class: time ? null : "first", style: { left: `${((time * FPS) / e.length) * 100}%` } },
    time ? String(+time.toFixed(1)) : "0 s");
  return el("div", { class: "ticks", "aria-hidden": "true" }, ticksOf(e.length / FPS, 7).filter((time) => time * FPS < 0.97 * e.length).map(tick));
}

function segmentTable(e, line) {
  line.reset = button({ class: "chip", onclick: () => reset(e, line), "aria-label": `Undo all corrections of the ${line.kind} subtasks of episode ${e.number}` }, "Undo all");
  line.objection = el("p", { class: "objection", role: "alert" });
  const title = div("panel-head tight", el("h4", null, line.kind), line.segments.length > 0 && line.reset);
  if (!line.segments.length) return el("section", null, title, el("p", { class: "note" }, emptyText(e)));
  const heads = [["subtask", ""], ["start (s)", "start"], ["end (s)", "number"], ["start frame", "number"], ["end frame", "number"]];
  const head = el("tr", null, heads.map(([text, name]) => el("th", { class: name, scope: "col" }, text)));
  return el("section", { "aria-label": `${line.kind} subtasks of episode ${e.number}` }, title,
    el("table", { class: "subtasks" }, el("thead", null, head), el("tbody", null, line.segments.map((each) => segmentRow(e, line, each)))),
    line.objection);
}

function emptyText(e) {
  const flag = e.flags.find(({ key }) => key === "unusable") || { key: "missing" };
  return DATA.flags[flag.key];
}

function segmentRow(e, line, segment) {
  const { n, name, colour } = segment;
  const swatch = el("i", { class: "swatch", style: { background: `var(--s${colour})` } });
  const go = button({ class: "go", title: "Go to its start", onclick: () => seekFrame(e, segment.start) }, swatch, el("span", null, name));
  const cell = (label) => el("td", { class: "number", "data-label": label });
  const start = el("td", { class: "number start", "data-label": "start" });
  Object.assign(segment, { end: cell("end"), frames: [cell("frame"), cell("to")], startCell: start });
  if (n) {
    const move = (frame) => moveStart(e, line, n, frame);
    segment.input = el("input", {
      type: "number", step: "any", min: "0", inputmode: "decimal", "aria-label": `Start of ${name} in seconds`,
      onchange: ({ target }) => move(target.value.trim() === "" ? NaN : Math.round(Number(target.value) * FPS)),
      onkeydown: (event) => {
        const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
        if (!by) return;
        event.preventDefault();
        move(segment.start + by);
      },
    });
    const here = button({ class: "button here", title: "Start it at the frame that is shown", "aria-label": `Set the start of ${name} to the frame that is shown`, onclick: () => move(frameNow(e)) }, "Set here");
    start.append(segment.input, here);
  }
  segment.row = el("tr", null, el("th", { scope: "row" }, go), start, segment.end, segment.frames);
  return segment.row;
}

function moveStart(e, line, n, frame) {
  const segment = line.segments[n];
  const objection = objectionTo(e, line, n, frame);
  line.objection.textContent = objection || "";
  segment.input.value = secondsAt(segment.start); // where nothing changes it, what was typed goes
  if (objection || frame === segment.start) return;
  segment.start = frame;
  drawTimeline(e, line);
  seekFrame(e, frame);
  noteChange();
}

function reset(e, line) {
  for (const segment of line.segments) segment.start = segment.stored;
  line.objection.textContent = "";
  drawTimeline(e, line);
  noteChange();
}

// A timeline and its table as the starts are now.
function drawTimeline(e, line) {
  const piece = (segment) => {
    const { n, name, start, colour } = segment;
    const [end, stop] = [endOf(e, line, n), n + 1 < line.segments.length ? endOf(e, line, n) : e.length];
    const times = `${secondsAt(start)}–${secondsAt(end)} s`;
    const place = { left: `${(start / e.length) * 100}%`, width: `${((stop - start) / e.length) * 100}%`, background: `var(--s${colour})` };
    return el("div", { class: "piece", style: place, title: `${name}, ${times}` }, span("piece-name", name), span("piece-time", times));
  };
  fill(line.lane, line.segments.length ? line.segments.map(piece) : span("faint", "no subtasks"));
  for (const segment of line.segments) {
    const end = endOf(e, line, segment.n);
    if (segment.input) segment.input.value = secondsAt(segment.start);
    else fill(segment.startCell, el("span", null, secondsAt(segment.start)));
    segment.end.textContent = secondsAt(end);
    segment.frames[0].textContent = count(segment.start);
    segment.frames[1].textContent = count(end);
    segment.row.classList.toggle("changed", segment.start !== segment.stored);
  }
  line.reset.hidden = !changesOf(line);
  if (e.view) e.view.badge.hidden = !isEdited(e);
  if (e.view) e.view.shown = -1; // the subtask under the cursor may be another one
}

// A video is made when it is nearly in sight, and on any touch of its controls.
function load(e) {
  if (e.view.transport) return e.view.transport;
  const { node, transport } = scene(e, () => playOrPause(e));
  node.style.setProperty("--aspect", String(DATA.media.aspect));
  e.view.stage.replaceWith(node);
  Object.assign(e.view, { stage: node, transport });
  return transport;
}

const frameNow = (e) => frameAt(e, load(e).time);
function playOrPause(e) {
  const transport = load(e);
  if (transport.playing) return transport.pause();
  for (const other of EPISODES) if (other !== e) other.view.transport?.pause();
  return transport.play();
}
function seekFrame(e, frame) {
  load(e).seek(Math.min(Math.max(frame, 0), e.length - 1) / FPS);
}
function step(e, by) {
  load(e).pause();
  seekFrame(e, frameNow(e) + by);
}

// Once per picture of the screen: whatever moved the time, the cursor is where it is.
function follow(e) {
  const { transport, play, cursor, lanes, readout } = e.view;
  const time = transport ? transport.time : 0;
  const label = transport?.playing ? "Pause" : "Play";
  if (play.textContent !== label) play.textContent = label;
  if (time === e.view.shown) return;
  e.view.shown = time;
  transport?.show?.();
  const frame = frameAt(e, time);
  cursor.style.left = `${Math.min((time * FPS) / e.length, 1) * 100}%`;
  const now = e.timelines.map((line) => ({ line, segment: line.segments.findLast(({ start }) => start <= frame) }));
  const said = [`${secondsAt(frame)} s`, `frame ${count(frame)}`];
  for (const { line, segment } of now) {
    for (const each of line.segments) each.row.classList.toggle("now", each === segment);
    if (segment) said.push(KINDS.length > 1 ? `${line.kind}: ${segment.name}` : segment.name);
  }
  fill(readout, said.map((text) => el("span", null, text)));
  lanes.setAttribute("aria-valuenow", String(frame));
  lanes.setAttribute("aria-valuetext", said.join(", "));
}
