// What pages about a dataset share: episodes and their pictures.

const FPS = DATA.dataset.fps;
const NOUN = DATA.noun || "episode"; // what an episode is called
const TITLE = NOUN[0].toUpperCase() + NOUN.slice(1);

// Episodes with what there is to be seen of them.
const FILMED = DATA.episodes.number.map((number, i) => {
  const e = DATA.episodes;
  return {
    i,
    number,
    name: e.name ? e.name[i] : `${TITLE} ${number}`,
    length: e.length[i],
    task: e.tasks[e.task[i]],
    strip: e.strip[i],
    video: e.video[i],
    videoFrames: e.video_frames[i],
    problem: e.problem[i],
  };
});

// Pictures: strips of an episode lie in sprites, which each get one rule, so that none is in the document twice.
const STRIP_FRAMES = DATA.media.strip_frames;
const SHEET = document.head.appendChild(el("style")).sheet;
DATA.media.sprites.forEach((source, n) => SHEET.insertRule(`.sprite-${n}{background-image:url("${source}")}`));

function picture(e, place) {
  const node = el("i", { class: `picture sprite-${e.strip[0]}`, style: { "aspect-ratio": String(DATA.media.aspect) } });
  showPicture(node, e, place);
  return node;
}
function showPicture(node, e, place) {
  const [sprite, row] = e.strip;
  const rows = DATA.media.num_rows[sprite];
  node.style.backgroundSize = `${STRIP_FRAMES * 100}% ${rows * 100}%`;
  node.style.backgroundPosition = `${(place / (STRIP_FRAMES - 1)) * 100}% ${rows > 1 ? (row / (rows - 1)) * 100 : 0}%`;
}
