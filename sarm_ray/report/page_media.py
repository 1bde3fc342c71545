"""Pictures and videos of all episodes: made side by side, and put into the page where they are few, beside it where not.

Files beside a page carry their content's digest in their names, so a page that is replaced stays whole until its successor
is written; what the new one does not need goes afterwards.
"""

import base64
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from sarm_ray.console import Progress, say
from sarm_ray.data import storage
from sarm_ray.data.lerobot import Dataset, fetch_files
from sarm_ray.errors import DatasetError
from sarm_ray.report.page_film import STRIP_FRAMES, Film, film_episode

MAX_EMBEDDED_EPISODES = 40
MAX_EMBEDDED_BYTES = 25 * 10**6  # as they stand in the page
STRIPS_PER_SPRITE = 12  # half a page of cards
JPEG_QUALITY = 70
EDGE_SHARE = 6  # of the videos, at least a sixth for the best and a sixth for the worst
MAX_WORKERS = 8


@dataclass(frozen=True)
class Media:
    """What the page shows of E episodes, in their order.

    Args:
        sprites: sources of the sprites: data URIs, or paths relative to the page.
        strip: per episode the sprite and the row in it, or None.
        num_rows: strips in each sprite.
        aspect: width over height of one picture.
        video: per episode the path of its video, `#` where it is in `embedded`, or None.
        num_frames: per episode, frames of its video that are there.
        dead, problem: per episode, see `Film`.
        embedded: number in the order -> the video in base64.
        files: names beside the page.
        strip_frames: pictures in a strip.
    """

    sprites: tuple[str, ...] = ()
    strip: tuple[tuple[int, int] | None, ...] = ()
    num_rows: tuple[int, ...] = ()
    aspect: float = 4 / 3
    video: tuple[str | None, ...] = ()
    num_frames: tuple[int, ...] = ()
    dead: tuple[str | None, ...] = ()
    problem: tuple[str | None, ...] = ()
    embedded: dict[int, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    strip_frames: int = STRIP_FRAMES


def choose_videos(final: np.ndarray, flagged: np.ndarray, number: int) -> np.ndarray:
    """Which episodes get a video: the best, the worst, the flagged from the worst up, then more of the best and the worst.

    Args:
        final: (E,) float64, final progress; NaN, which is neither good nor bad, comes last.
        flagged: (E,) bool.
        number: how many at most.

    Returns:
        (E,) bool.
    """
    every = np.argsort(final, kind="stable")  # NaN at the end
    worst = every[: np.isfinite(final).sum()]
    best = worst[::-1]
    edge = number // EDGE_SHARE
    others = np.stack([worst, best], axis=1).ravel()
    wishes = dict.fromkeys([*worst[:edge], *best[:edge], *every[flagged[every]], *others, *every])
    chosen = np.zeros(len(final), dtype=bool)
    chosen[list(wishes)[:number]] = True
    return chosen


def folder_beside(output: str) -> str:
    """The folder beside a page for what does not go into it."""
    return f"{output.removesuffix('.html')}.files"


def film_episodes(
    dataset: Dataset,
    camera: str | None,
    rows: np.ndarray,
    order: np.ndarray,
    with_video: np.ndarray,
    folder: str,
    notices: list[str],
    quiet: bool,
) -> Media:
    """Fetch what is not on this machine and film it; see `make_media`. What cannot be had is a notice.

    Args:
        camera: its key, or None where the dataset has none.
        notices: are added to.
    """
    if camera is None:
        nothing = (None,) * len(rows)
        return Media(strip=nothing, video=nothing, num_frames=(0,) * len(rows), dead=nothing, problem=nothing)
    try:
        fetch_files(dataset, rows, camera)
    except DatasetError as error:  # what is on this machine can still be shown
        notices.append(f"videos cannot be fetched ({error})")
    if not quiet:
        say(f"camera  {camera}; {with_video.sum():,} videos and {len(rows):,} strips of pictures")
    return make_media(dataset, camera, rows, order, with_video, folder, quiet)


def filmed_object(dataset: Dataset, rows: np.ndarray, media: Media) -> dict[str, Any]:
    """What page_base.js knows of each episode: one list per property, an entry per episode."""
    texts = ["; ".join(dataset.tasks[row]) for row in rows.tolist()]
    tasks = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return {
        "number": dataset.episode_index[rows].tolist(),
        "length": dataset.length[rows].tolist(),
        "tasks": list(tasks),
        "task": [tasks[text] for text in texts],
        "strip": media.strip,
        "video": media.video,
        "video_frames": media.num_frames,
        "problem": media.problem,
    }


def media_object(media: Media) -> dict[str, Any]:
    """Where page_base.js finds the pictures."""
    return {
        "sprites": media.sprites,
        "num_rows": media.num_rows,
        "strip_frames": media.strip_frames,
        "aspect": round(media.aspect, 4),
    }


def make_media(
    dataset: Dataset, camera: str, rows: np.ndarray, order: np.ndarray, with_video: np.ndarray, folder: str, quiet: bool
) -> Media:
    """Film every episode.

    Args:
        dataset: whose files are within reach.
        camera: its key.
        rows: (E,) int64, the episodes.
        order: (E,) int64, positions in `rows` in the order in which they are shown at first, so that one page of them
            needs few sprites.
        with_video: (E,) bool.
        folder: for files beside the page.
        quiet: print nothing.
    """
    films = _films(dataset, camera, rows, order, with_video)
    return keep_films(films, np.where(with_video, dataset.length[rows], STRIP_FRAMES), folder, quiet)


def keep_films(
    films: Iterable[tuple[int, Film]], work: np.ndarray, folder: str, quiet: bool, strip_frames: int = STRIP_FRAMES
) -> Media:
    """What the page shows of E episodes.

    Args:
        films: position and film, of each episode once at most.
        work: (E,) int64, pictures to be looked at, for the line that shows how far it is.
        folder: for files beside the page.
        quiet: print nothing.
        strip_frames: pictures in a strip.
    """
    kept = [Film(None, None, 0, None, None)] * len(work)
    store = _Store(folder, len(work) <= MAX_EMBEDDED_EPISODES, strip_frames)
    progress = Progress("film", int(work.sum()), quiet)
    for place, film in films:
        store.add(place, film)
        kept[place] = Film(None, None, film.num_frames, film.dead, film.problem)  # figures stay, pixels go
        progress.add(int(work[place]))
    progress.finish()
    return store.media(kept)


def remove_others(folder: str, kept: Sequence[str]) -> None:
    """Remove files that an earlier page of this name had beside it."""
    names = storage.list_names(folder)
    for name in names:
        if name.startswith(("sprite-", "video-")) and name not in kept:
            storage.remove_file(storage.join(folder, name))
    if names and not storage.list_names(folder):
        storage.remove_folder(folder)


def _films(
    dataset: Dataset, camera: str, rows: np.ndarray, order: np.ndarray, with_video: np.ndarray
) -> Iterator[tuple[int, Film]]:
    """Films in this order, made on all cores: decoding and encoding let go of Python's lock."""
    places = order.tolist()
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS))
    try:
        pending = [pool.submit(film_episode, dataset, camera, int(rows[p]), bool(with_video[p])) for p in places]
        for number, place in enumerate(places):
            film = pending[number].result()
            pending[number] = None  # type: ignore[call-overload]  # its pixels must not stay
            yield place, film
    finally:
        pool.shutdown(cancel_futures=True)


class _Store:
    """Takes films one after the other; keeps what they are made into, or writes it beside the page once it is too much."""

    def __init__(self, folder: str, embed: bool, strip_frames: int):
        self.folder, self.embed, self.strip_frames = folder, embed, strip_frames
        self.num_bytes = 0
        self.kept: dict[str, bytes] = {}
        self.files: list[str] = []
        self.sprites: list[str] = []
        self.num_rows: list[int] = []
        self.aspect = 4 / 3
        self.waiting: list[tuple[int, np.ndarray]] = []
        self.strip: dict[int, tuple[int, int]] = {}
        self.video: dict[int, str] = {}

    def add(self, place: int, film: Film) -> None:
        if film.video is not None:
            self.video[place] = self._put("video", place, "mp4", film.video)
        if film.strip is not None:
            if not self.sprites and not self.waiting:
                self.aspect = film.strip.shape[1] / self.strip_frames / film.strip.shape[0]
            if self.waiting and film.strip.shape != self.waiting[0][1].shape:
                self._close_sprite()
            self.waiting.append((place, film.strip))
            if len(self.waiting) == STRIPS_PER_SPRITE:
                self._close_sprite()

    def media(self, films: list[Film]) -> Media:
        self._close_sprite()
        places = range(len(films))
        embedded = {}
        if self.embed:
            encoded = {name: base64.b64encode(content).decode() for name, content in self.kept.items()}
            embedded = {place: encoded[name] for place, name in self.video.items()}
            self.sprites = [f"data:image/jpeg;base64,{encoded[name]}" for name in self.sprites]
        else:
            self.sprites = [self._path(name) for name in self.sprites]
        video = {place: "#" if self.embed else self._path(name) for place, name in self.video.items()}
        return Media(
            sprites=tuple(self.sprites),
            strip=tuple(self.strip.get(place) for place in places),
            num_rows=tuple(self.num_rows),
            aspect=self.aspect,
            video=tuple(video.get(place) for place in places),
            num_frames=tuple(film.num_frames for film in films),
            dead=tuple(film.dead for film in films),
            problem=tuple(film.problem for film in films),
            embedded=embedded,
            files=tuple(self.files),
            strip_frames=self.strip_frames,
        )

    def _close_sprite(self) -> None:
        """Write the strips that wait, one below the other."""
        if not self.waiting:
            return
        buffer = io.BytesIO()
        pixels = np.concatenate([strip for _, strip in self.waiting])
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
        for number, (place, _) in enumerate(self.waiting):
            self.strip[place] = (len(self.sprites), number)
        self.num_rows.append(len(self.waiting))
        self.sprites.append(self._put("sprite", len(self.sprites), "jpg", buffer.getvalue()))
        self.waiting = []

    def _put(self, kind: str, number: int, suffix: str, content: bytes) -> str:
        """Keep a file or write it; its name."""
        name = f"{kind}-{number:06d}-{hashlib.sha256(content).hexdigest()[:8]}.{suffix}"
        self.num_bytes += 4 * len(content) // 3
        self.kept[name] = content
        if self.embed and self.num_bytes > MAX_EMBEDDED_BYTES:
            self.embed = False
        if not self.embed:
            for each, kept in self.kept.items():
                storage.write_file(storage.join(self.folder, each), kept)
                self.files.append(each)
            self.kept = {}
        return name

    def _path(self, name: str) -> str:
        """Relative to the page."""
        return f"{quote(self.folder.rstrip('/').rsplit('/', 1)[-1])}/{name}"
