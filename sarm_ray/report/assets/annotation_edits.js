// What a person may correct: starts of subtasks, each between the starts around it. Ends follow. All of it becomes a CSV.

const KINDS = DATA.kinds;
const DIGITS = FPS > 50 ? 3 : 2; // of seconds, so that each frame has a time of its own
const STAGE_COLOURS = 8;

const EPISODES = FILMED.map((filmed) => ({
  ...filmed,
  flags: DATA.episodes.flags[filmed.i].map(([key, text]) => ({ key, text })),
  timelines: KINDS.map((kind) => ({
    kind,
    segments: DATA.segments[kind][filmed.i].map(([name, start], n) => ({
      n,
      name: DATA.names[name],
      colour: name % STAGE_COLOURS,
      start,
      stored: start,
    })),
  })),
}));

const secondsAt = (frame) => (frame / FPS).toFixed(DIGITS);
const endOf = (e, line, n) => (n + 1 < line.segments.length ? line.segments[n + 1].start : e.length - 1);
const changesOf = (line) => line.segments.filter((segment) => segment.start !== segment.stored).length;
const isEdited = (e) => e.timelines.some(changesOf);

// Why a subtask, not the first, cannot start at a frame; null where it can. Each keeps one frame at least.
function objectionTo(e, line, n, frame) {
  const [before, segment, after] = [line.segments[n - 1], line.segments[n], line.segments[n + 1]];
  const lowest = before.start + 1;
  const highest = (after ? after.start : e.length) - 1;
  const kept = `It stays at ${secondsAt(segment.start)} s.`;
  if (!Number.isFinite(frame)) return `The start of “${segment.name}” must be a time in seconds. ${kept}`;
  if (frame >= lowest && frame <= highest) return null;
  const wall = frame < lowest
    ? `“${before.name}”, which starts at ${secondsAt(before.start)} s`
    : after ? `“${after.name}”, which starts at ${secondsAt(after.start)} s` : `the episode's end`;
  const room = lowest <= highest
    ? `there is room from ${secondsAt(lowest)} to ${secondsAt(highest)} s`
    : "there is no room between its neighbours";
  return `“${segment.name}” cannot start at ${secondsAt(frame)} s: that would cross ${wall}; ${room}. ${kept}`;
}

// Rows of all episodes of the page, by number. Times have six digits, which gives every frame back.
function correctedCsv() {
  const time = (frame) => Number((frame / FPS).toFixed(6));
  const field = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const rows = [...EPISODES].sort((a, b) => a.number - b.number).flatMap((e) =>
    e.timelines.flatMap((line) => line.segments.map(({ n, name, start }) => {
      const end = endOf(e, line, n);
      return [e.number, line.kind, name, time(start), time(end), start, end];
    })));
  return [DATA.columns, ...rows].map((row) => `${row.map(field).join(",")}\n`).join("");
}
