"""The page about a log of live rollouts: each is an episode of a table without files, its thumbnails are the pictures.

The page has one frame rate, that of most rollouts. Scores stand at the frames at which they were made, with a straight line
from one to the next as `score --stride` draws it; but where none was made for long (a robot out of reach), or one is NaN,
there is a hole. There is no RA-BC: no policy can be trained on a log's frames.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from sarm_ray.config.report import ReportConfig
from sarm_ray.core.progress import interpolate_progress
from sarm_ray.data import storage
from sarm_ray.data.inspection.footage import BLOCKS_HIGH, is_black, is_frozen
from sarm_ray.data.lerobot import Dataset, EpisodeFiles
from sarm_ray.data.outcomes import GRADES
from sarm_ray.data.progress_io import ProgressBlock
from sarm_ray.data.rollout_log import read_rollouts, read_thumbnails
from sarm_ray.data.rollouts import HEADS, Rollout
from sarm_ray.errors import ConfigError, DatasetError
from sarm_ray.report.flags import Flag
from sarm_ray.report.page_data import Curves, gather_curves, point_frames
from sarm_ray.report.page_film import STRIP_HEIGHT, UNREADABLE, WIDEST_PICTURE, Film
from sarm_ray.report.page_media import Media, keep_films
from sarm_ray.report.page_stages import NO_STAGE, Lanes
from sarm_ray.report.page_subject import Subject, place_page

LOG_PAGE = "_report.html"  # in the log's folder; pandas.read_parquet passes over names with a `_`
GAP_S = 1.0  # without a score is a hole,
GAP_STEPS = 3.0  # unless scores are that far apart anyway
LONGEST_S = 86_400.0  # a robot's clock may jump, and a curve has a value for every frame
STRIP_THUMBNAILS = 13
ENDED = {
    "closed": "closed by the robot",
    "idle": "fell silent",
    "lost": "connection lost",
    "drained": "sent away by a server that stopped",
}
FOREIGN = ("progress", "labels", "evaluation", "image_key", "revision")  # flags that are about datasets


def open_rollouts(config: ReportConfig) -> Subject:
    """A log of rollouts.

    Raises:
        ConfigError: a flag that is about a dataset.
        OutputExistsError: the page is there already, and may not be replaced.
        DatasetError: a file of the log that cannot be read; no rollout has the head.
    """
    given = [f"--{name.replace('_', '-')}" for name in FOREIGN if getattr(config, name) is not None]
    if given:
        raise ConfigError(f"{config.dataset} is a log of rollouts, which has no use for {' and '.join(given)}")
    folder = storage.absolute(config.dataset)
    name = folder.rsplit("/", 1)[-1]
    output = place_page(config, folder, LOG_PAGE, name)
    every = read_rollouts(folder, thumbnails=False)
    head = config.head_mode or _first_head(every)
    rollouts, notices = _choose_rollouts(every, head, config.dataset)
    dataset = rollouts_as_dataset(rollouts, folder, name)
    blocks = (_block(rollout, head, row, dataset) for row, rollout in enumerate(rollouts))
    curves = gather_curves(blocks, folder, dataset, config.chunk_size)
    lanes = predicted_lanes(rollouts, head, dataset, curves)
    return Subject(
        dataset=dataset,
        output=output,
        source={"head": head, "model": _in_words([rollout.model for rollout in rollouts], "models"), "live": True},
        camera=None,
        curves=curves,
        lanes=lanes,
        flags=tuple(_flags(rollout, int(dataset.length[row])) for row, rollout in enumerate(rollouts)),
        outcomes=np.array([GRADES.get(rollout.outcome or "", np.nan) for rollout in rollouts]),
        film=partial(film_rollouts, folder, rollouts, dataset),
        noun="rollout",
        about={"when": _span(rollouts)},
        details={"name": [rollout.session for rollout in rollouts], "facts": [_facts(rollout) for rollout in rollouts]},
        notices=(*notices, *lanes.notices),
    )


def _first_head(rollouts: Sequence[Rollout]) -> str:
    """The sparse head where any rollout has it."""
    return next((head for head in HEADS if any(head in rollout.heads for rollout in rollouts)), HEADS[0])


def _choose_rollouts(every: Sequence[Rollout], head: str, log: str) -> tuple[list[Rollout], list[str]]:
    """Those that can be shown, and what to say of the others."""
    with_head = [rollout for rollout in every if head in rollout.heads]
    rollouts = [r for r in with_head if not len(r.frame_index) or r.frame_index[-1] < LONGEST_S * r.fps]
    if not rollouts:
        raise DatasetError(
            f"{log}: no rollout has a {head} head" if not with_head else f"{log}: no rollout can be shown"
        )
    counts = {
        f"they have no {head} head": len(every) - len(with_head),
        f"their frames' times span more than {LONGEST_S / 3600:g} hours": len(with_head) - len(rollouts),
    }
    told = [f"{number:,} of {len(every):,} rollouts are not shown: {why}" for why, number in counts.items() if number]
    return rollouts, told


def rollouts_as_dataset(rollouts: Sequence[Rollout], folder: str, name: str) -> Dataset:
    """A table of episodes without files: rollouts numbered by their start, at the frame rate of most of them."""
    rates = Counter(rollout.fps for rollout in rollouts)
    fps = max(rates, key=lambda rate: (rates[rate], rate))
    length = np.array([int(grid_frames(rollout, fps)[-1:].sum()) + 1 for rollout in rollouts], dtype=np.int64)
    nowhere = EpisodeFiles((), np.zeros(len(length), dtype=np.int64), np.zeros(len(length)))
    return Dataset(
        root=folder,
        name=name,
        version="",
        fps=fps,
        features={},
        episode_index=np.arange(len(length)),
        length=length,
        from_index=np.cumsum(length) - length,
        tasks=tuple((rollout.task,) for rollout in rollouts),
        data_files=nowhere,
        videos={},
        files={},
    )


def grid_frames(rollout: Rollout, fps: float) -> np.ndarray:
    """The frames of a rollout's scores at another frame rate: (F,) int64, where two may be one."""
    return np.floor(rollout.frame_index * (fps / rollout.fps) + 0.5).astype(np.int64)


def grid_progress(rollout: Rollout, head: str, fps: float, length: int) -> np.ndarray:
    """Progress at every frame of a rate: (length,) float32, a scored frame's to the bit, NaN in holes."""
    frames, place = _last_of_each(grid_frames(rollout, fps))
    progress = np.full(length, np.nan, dtype=np.float32)
    if len(frames):
        values = rollout.heads[head].progress[place]
        values = np.where(np.isfinite(values), values, np.float32(np.nan))
        progress[frames[0] :] = interpolate_progress(frames - frames[0], values, length - int(frames[0]))
    for start, stop in _gaps(frames, fps):
        progress[start + 1 : stop] = np.nan
    return progress


def grid_stages(rollout: Rollout, head: str, fps: float, length: int) -> np.ndarray:
    """The stage at every frame of a rate, that of the newest score: (length,) int64, -1 where there is none."""
    frames, place = _last_of_each(grid_frames(rollout, fps))
    newest = np.searchsorted(frames, np.arange(length), side="right") - 1
    stage = np.append(rollout.heads[head].stage[place].astype(np.int64), -1)[newest]
    for start, stop in _gaps(frames, fps):
        stage[start + 1 : stop] = -1
    return stage


def _last_of_each(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct frames, and where the last of each is."""
    place = np.flatnonzero(np.diff(frames, append=-1))
    return frames[place], place


def _gaps(frames: np.ndarray, fps: float) -> list[tuple[int, int]]:
    steps = np.diff(frames)
    if not len(steps):
        return []
    wide = np.flatnonzero((steps > GAP_S * fps) & (steps > GAP_STEPS * np.median(steps)))
    return list(zip(frames[wide].tolist(), frames[wide + 1].tolist(), strict=True))


def _block(rollout: Rollout, head: str, row: int, dataset: Dataset) -> ProgressBlock:
    length = int(dataset.length[row])
    progress = grid_progress(rollout, head, dataset.fps, length)
    index = int(dataset.from_index[row]) + np.arange(length)
    return ProgressBlock(index, np.full(length, row), np.array([length]), progress)


def predicted_lanes(rollouts: Sequence[Rollout], head: str, dataset: Dataset, curves: Curves) -> Lanes:
    """The stages that the models saw, at the points of the curves; those of one name are one."""
    own = [rollout.heads[head].stages for rollout in rollouts]
    names = tuple(dict.fromkeys(name for stages in own for name in stages))
    if all(len(stages) < 2 for stages in own):
        return Lanes()
    if len(names) >= NO_STAGE:
        return Lanes(notices=(f"predicted stages are not shown (there are {len(names)})",))
    parts = []
    for row, rollout in enumerate(rollouts):
        length = int(dataset.length[row])
        stage = grid_stages(rollout, head, dataset.fps, length)[point_frames(length, int(curves.num_points[row]))]
        codes = np.array([*map(names.index, own[row]), NO_STAGE], dtype=np.uint8)
        known = (stage >= 0) & (stage < len(own[row]))
        parts.append(codes[np.where(known, stage, -1)])
    return Lanes(names=names, predicted=np.concatenate(parts))


def film_rollouts(
    location: str,
    rollouts: Sequence[Rollout],
    dataset: Dataset,
    order: np.ndarray,
    with_video: np.ndarray,
    folder: str,
    notices: list[str],
    quiet: bool,
) -> Media:
    """Strips of the thumbnails, in the order of the log, so that none has to wait in memory; there are no videos."""
    work = np.full(len(rollouts), STRIP_THUMBNAILS)
    return keep_films(_films(location, rollouts, dataset), work, folder, quiet, STRIP_THUMBNAILS)


def _films(location: str, rollouts: Sequence[Rollout], dataset: Dataset) -> Iterator[tuple[int, Film]]:
    width = None
    for row, thumbnails in read_thumbnails(location, rollouts):
        film, width = film_thumbnails(thumbnails, float((dataset.length[row] - 1) / dataset.fps), width)
        yield row, film


def film_thumbnails(
    thumbnails: Sequence[tuple[float, bytes]], duration_s: float, width: int | None
) -> tuple[Film, int | None]:
    """A strip of the thumbnails nearest to STRIP_THUMBNAILS times from beginning to end.

    Args:
        thumbnails: times and JPEGs; one that cannot be read is passed over.
        duration_s: of the rollout.
        width: of a picture of STRIP_HEIGHT; None takes that of the first one.

    Returns:
        The film, and the width.
    """
    wanted = np.linspace(0.0, duration_s, STRIP_THUMBNAILS)
    pictures: dict[float, np.ndarray] = {}
    levels = []
    for place in np.unique(_nearest([moment for moment, _ in thumbnails], wanted)).tolist() if thumbnails else ():
        moment, content = thumbnails[place]
        try:
            with Image.open(io.BytesIO(content)) as image:
                whole = image.convert("RGB")
        except UNREADABLE:
            continue
        width = width or max(round(STRIP_HEIGHT * min(whole.width / whole.height, WIDEST_PICTURE)), 1)
        pictures[moment] = np.asarray(ImageOps.fit(whole, (width, STRIP_HEIGHT)))
        size = (max(round(BLOCKS_HIGH * width / STRIP_HEIGHT), 1), BLOCKS_HIGH)
        levels.append(np.asarray(whole.convert("L").resize(size, Image.Resampling.BOX), dtype=np.float32))
    if not pictures:
        return Film(None, None, 0, None, None), width
    dead = "black" if is_black(np.stack(levels)) else "frozen" if is_frozen(np.stack(levels)) else None
    shown = list(pictures.values())
    strip = np.concatenate([shown[place] for place in _nearest(list(pictures), wanted)], axis=1)
    return Film(strip, None, 0, dead, None), width


def _nearest(times: Sequence[float], wanted: np.ndarray) -> np.ndarray:
    """Of each wanted time the position of the nearest one."""
    return np.abs(np.array(times)[None] - wanted[:, None]).argmin(axis=1)


def _flags(rollout: Rollout, length: int) -> tuple[Flag, ...]:
    flags = [Flag("cut", 0, length)] if rollout.ended != "closed" else []
    if rollout.num_dropped:
        due = rollout.num_dropped + rollout.num_scored
        flags.append(Flag("overload", 0, length, rollout.num_dropped / due))
    return tuple(flags)


def _facts(rollout: Rollout) -> list[str]:
    """What a card and the opened rollout say; the start comes first."""
    counts = {"frames": rollout.num_received, "scored": rollout.num_scored, "dropped": rollout.num_dropped}
    said = ", ".join(f"{number:,} {noun}" for noun, number in counts.items())
    return [_clock(rollout.started_s), said, ENDED[rollout.ended], *filter(None, [rollout.model])]


def _clock(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _span(rollouts: Sequence[Rollout]) -> str:
    first, last = (_clock(rollout.started_s) for rollout in (rollouts[0], rollouts[-1]))
    return (
        first if len(rollouts) == 1 else f"{first[:-7]} to {last[11:-7] if first[:10] == last[:10] else last[:-7]} UTC"
    )


def _in_words(names: Sequence[str], noun: str) -> str | None:
    """The one name, or how many there are."""
    distinct = sorted(set(names) - {""})
    return None if not distinct else distinct[0] if len(distinct) == 1 else f"{len(distinct):,} {noun}"
