// What plays an opened episode, and what is to be seen of it.

const SPEEDS = [0.25, 0.5, 1, 2, 4];
let speed = 1;

// Two kinds of transport with one face: a video, and a clock that scrubs the pictures of an episode without one.
function videoTransport(video, e, url) {
  const stop = e.videoFrames / FPS;
  return {
    get time() {
      return video.currentTime;
    },
    get playing() {
      return !video.paused && !video.ended;
    },
    // a quarter of a frame in, so that rounding never shows the frame before
    seek(time) {
      video.currentTime = Math.min((Math.round(time * FPS) + 0.25) / FPS, Math.max(stop - 0.25 / FPS, 0));
    },
    play() {
      video.playbackRate = speed;
      video.play().catch(() => {});
    },
    pause() {
      video.pause();
    },
    setSpeed() {
      video.playbackRate = speed;
    },
    close() {
      video.pause();
      video.removeAttribute("src");
      video.load();
      if (url) URL.revokeObjectURL(url);
    },
  };
}
function clockTransport(node, e) {
  const stop = (e.length - 1) / FPS;
  let base = 0,
    since = null;
  const now = () => (since === null ? base : Math.min(base + ((performance.now() - since) / 1000) * speed, stop));
  const settle = () => {
    base = now();
    if (since !== null) since = performance.now();
  };
  return {
    get time() {
      return now();
    },
    get playing() {
      return since !== null && now() < stop;
    },
    seek(time) {
      base = Math.min(Math.max(time, 0), stop);
      if (since !== null) since = performance.now();
    },
    play() {
      if (now() >= stop) base = 0;
      since = performance.now();
    },
    pause() {
      settle();
      since = null;
    },
    setSpeed: settle,
    show() {
      if (e.strip) showPicture(node, e, Math.round((stop > 0 ? now() / stop : 0) * (STRIP_FRAMES - 1)));
    },
    close() {
      since = null;
    },
  };
}

// What plays an episode: the element to show, and its transport. `onclick` is what a click on the video does.
function scene(e, onclick) {
  return e.video === null ? sceneOfPictures(e) : sceneOfVideo(e, onclick);
}

function sceneOfPictures(e) {
  const missing = e.problem ? "video cannot be read" : "no pictures";
  const shown = e.strip ? picture(e, 0) : div("picture empty", missing);
  const whose = NOUN === "episode" ? "Only some episodes of a large report have a video" : `A ${NOUN} has no video`;
  const few = `${whose}. The nearest of ${STRIP_FRAMES} pictures is shown.`;
  const why = e.problem || (e.strip && few);
  const title = e.problem ? "The video cannot be read" : "Pictures only";
  const node = div("stage", shown, el("p", { class: "note" }, el("strong", null, title), why && `: ${why}`));
  return { node, transport: clockTransport(shown, e) };
}

function sceneOfVideo(e, onclick) {
  const label = `Video of ${e.name}`;
  const video = el("video", { playsinline: true, preload: "auto", tabindex: "-1", "aria-label": label, onclick });
  video.muted = true;
  const media = $(`media-${e.i}`);
  const url = media && blobUrl(media.textContent, "video/mp4");
  video.src = url || e.video;
  const until = `From ${seconds(e.videoFrames / FPS)} on there is no picture: ${e.problem}`;
  const note = el("p", { class: "note" }, e.problem && until);
  const gone = `${e.video} should be beside this page, and is not.`;
  video.addEventListener("error", () => {
    if (video.hasAttribute("src")) note.textContent = media ? "This browser does not play the video (H.264)." : gone;
  });
  return { node: div("stage", video, note), transport: videoTransport(video, e, url) };
}

function blobUrl(base64, type) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type }));
}

const frameAt = (e, time) => Math.min(Math.floor(time * FPS + 0.02), e.length - 1);

// Buttons of a player: `id` of the one that plays, what they do, and who has the transport.
function transportBar({ id, playOrPause, step, transport }) {
  const setSpeed = (event) => {
    speed = Number(event.target.value);
    for (const each of document.querySelectorAll("select.speed")) each.value = event.target.value;
    transport()?.setSpeed();
  };
  const speeds = SPEEDS.map((each) => el("option", { value: each, selected: each === speed }, `${each}×`));
  return div("transport",
    button({ id, class: "button primary play", title: "Space", onclick: playOrPause }, "Play"),
    button({ "aria-label": "One frame back", title: "One frame back", onclick: () => step(-1) }, "−1"),
    button({ "aria-label": "One frame on", title: "One frame on", onclick: () => step(1) }, "+1"),
    el("select", { class: "speed", "aria-label": "Speed", title: "Speed", onchange: setSpeed }, speeds));
}

// A press and a drag on a node call `seek` with the share of its width from the left.
function dragToSeek(node, seek) {
  let dragging = false;
  const share = (event) => {
    const box = node.getBoundingClientRect();
    seek((event.clientX - box.left) / box.width);
  };
  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    dragging = true;
    node.setPointerCapture(event.pointerId);
    share(event);
  });
  node.addEventListener("pointermove", (event) => {
    if (dragging) share(event);
  });
  for (const kind of ["pointerup", "pointercancel"])
    node.addEventListener(kind, () => {
      dragging = false;
    });
}
