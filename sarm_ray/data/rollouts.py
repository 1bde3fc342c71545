"""A live rollout that is over, and its two tables: a row per scored frame, and a row of facts with its thumbnails."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

HEADS = ("sparse", "dense")
OUTCOMES = ("success", "partial", "failure")
ENDINGS = ("closed", "idle", "lost", "drained")
MAX_THUMBNAILS = 64
NO_STAGE = -1
LATEST_S = 2.0**32  # 2106; a time in milliseconds is none
COUNTS = ("num_received", "num_scored", "num_dropped", "num_skipped")
# what a frame has of its rollout, so that a person needs no join; not read again
REPEATED = [
    ("episode_index", pa.int64()),
    ("session", pa.string()),
    ("started_s", pa.float64()),
    ("task", pa.string()),
    ("outcome", pa.string()),
]
CURVES = [
    ("frame_index", pa.int64()),
    ("time_s", pa.float64()),
    *((f"progress_{head}", pa.float32()) for head in HEADS),
    *((f"stage_{head}", pa.int32()) for head in HEADS),
    *((f"confidence_{head}", pa.float32()) for head in HEADS),
]
FRAMES_SCHEMA = pa.schema([("index", pa.int64()), REPEATED[0], *CURVES, *REPEATED[1:]])
FACTS_SCHEMA = pa.schema(
    [
        *REPEATED,
        ("ended", pa.string()),
        ("duration_s", pa.float64()),
        *((f"final_{head}", pa.float32()) for head in HEADS),
        ("fps", pa.float64()),
        ("model", pa.string()),
        ("encoder", pa.string()),
        *((f"stages_{head}", pa.list_(pa.string())) for head in HEADS),
        ("num_rows", pa.int64()),
        *((name, pa.int64()) for name in COUNTS),
        ("thumbnail_times", pa.list_(pa.float64())),
        ("thumbnails", pa.list_(pa.binary())),
    ]
)


@dataclass(frozen=True, eq=False)
class HeadCurve:
    """What one head said of a rollout's F scored frames.

    Args:
        stages: names of its stages.
        progress: (F,) float32, NaN where there is none.
        stage: (F,) int32, position in `stages`, NO_STAGE where there is none.
        confidence: (F,) float32, NaN where there is none.
    """

    stages: tuple[str, ...]
    progress: np.ndarray
    stage: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True, eq=False)
class Rollout:
    """A rollout that is over. All times of frames are seconds since the session's first frame.

    Args:
        session: its id.
        started_s: when it began, unix seconds. Id and start together say which rollout this is: who goes on with a session
            that another process began has to give the same start.
        task, fps, model, encoder: as the session had them.
        heads: `sparse`, `dense` or both.
        time_s: (F,) float64, of the scored frames.
        frame_index: (F,) int64, round(time_s * fps), ascending, none twice.
        outcome: one of OUTCOMES, or None where nobody said.
        ended: one of ENDINGS.
        num_received, num_scored, num_dropped, num_skipped: frames.
        thumbnails: at most MAX_THUMBNAILS of (time_s, JPEG), ascending.
        file: where it was read from; empty for a new one.

    Raises:
        ValueError: fields that contradict each other, or are none of those above.
    """

    session: str
    started_s: float
    task: str
    fps: float
    model: str
    encoder: str
    heads: dict[str, HeadCurve]
    time_s: np.ndarray
    frame_index: np.ndarray
    ended: str
    outcome: str | None = None
    num_received: int = 0
    num_scored: int = 0
    num_dropped: int = 0
    num_skipped: int = 0
    thumbnails: tuple[tuple[float, bytes], ...] = ()
    file: str = ""

    def __post_init__(self) -> None:
        columns = [self.frame_index]
        for curve in self.heads.values():
            columns += [curve.progress, curve.stage, curve.confidence]
        if any(column.shape != (len(self.time_s),) for column in columns):
            raise ValueError(f"session {self.session}: its columns are not of one length")
        if not self.heads.keys() <= set(HEADS):
            raise ValueError(f"session {self.session}: heads {sorted(self.heads)} are not of {HEADS}")
        if self.ended not in ENDINGS or self.outcome not in (None, *OUTCOMES):
            raise ValueError(f"session {self.session}: ended {self.ended!r} with outcome {self.outcome!r}")
        if not (0 <= self.started_s < LATEST_S and 0 < self.fps < np.inf):
            raise ValueError(f"session {self.session}: started at {self.started_s}, {self.fps} frames per second")
        if not (np.isfinite(self.time_s).all() and (np.diff(self.frame_index) > 0).all()):
            raise ValueError(f"session {self.session}: frames that are not in order, or times that are no numbers")
        if len(self.frame_index) and self.frame_index[0] < 0:
            raise ValueError(f"session {self.session}: a frame before the first one")
        if len(self.thumbnails) > MAX_THUMBNAILS:
            raise ValueError(f"session {self.session}: {len(self.thumbnails)} thumbnails, more than {MAX_THUMBNAILS}")

    @property
    def key(self) -> tuple[str, float]:
        """Which rollout it is."""
        return self.session, self.started_s


def episode_number(session: str, started_s: float) -> int:
    """A rollout's episode_index in a log: ascending with the start, of all processes alike, and as good as never twice.

    42 bits of milliseconds since 1970 and 21 of a digest.
    """
    digest = hashlib.sha256(f"{session}\n{started_s!r}".encode(errors="replace")).digest()
    return int(started_s * 1000) << 21 | int.from_bytes(digest[:4], "little") >> 11


def frames_table(rollouts: Sequence[Rollout]) -> pa.Table:
    """FRAMES_SCHEMA: the rollouts' scored frames, one rollout after the other; `index` counts inside each.

    A head that a rollout does not have is NaN, and its stage NO_STAGE: nulls would make whole columns floats in pandas.
    """
    tables = []
    for rollout in rollouts:
        size = len(rollout.time_s)
        none = HeadCurve((), np.full(size, np.nan), np.full(size, NO_STAGE), np.full(size, np.nan))
        columns: dict[str, Any] = {
            "index": np.arange(size),
            "frame_index": rollout.frame_index,
            "time_s": rollout.time_s,
        }
        for head in HEADS:
            curve = rollout.heads.get(head, none)
            columns[f"progress_{head}"], columns[f"stage_{head}"] = curve.progress, curve.stage
            columns[f"confidence_{head}"] = curve.confidence
        facts = _facts(rollout)
        for name, kind in REPEATED:
            columns[name] = pa.repeat(pa.scalar(facts[name], kind), size)
        arrays = [pa.array(columns[name], FRAMES_SCHEMA.field(name).type) for name in FRAMES_SCHEMA.names]
        tables.append(pa.Table.from_arrays(arrays, schema=FRAMES_SCHEMA))
    return pa.concat_tables(tables)


def facts_table(rollouts: Sequence[Rollout]) -> pa.Table:
    """FACTS_SCHEMA: a row per rollout; `stages_<head>` is null where it does not have the head."""
    return pa.Table.from_pylist([_facts(rollout) for rollout in rollouts], schema=FACTS_SCHEMA)


def rollouts_of(facts: pa.Table, frames: pa.Table, file: str) -> list[Rollout]:
    """Rollouts from their tables.

    Args:
        facts: FACTS_SCHEMA; without thumbnails nobody has any.
        frames: the columns CURVES of FRAMES_SCHEMA.
        file: where they were read from.

    Raises:
        ValueError: the tables are not of the same rollouts, or those contradict themselves.
    """
    columns = {name: frames[name].to_numpy() for name in frames.column_names}
    rollouts: list[Rollout] = []
    start = 0
    for row in facts.to_pylist():
        own = {name: column[start : start + row["num_rows"]] for name, column in columns.items()}
        start += row["num_rows"]
        rollouts.append(_rollout_of(row, own, file))
    if start != frames.num_rows:
        raise ValueError(f"it has {frames.num_rows:,} frames, where its rollouts have {start:,}")
    return rollouts


def _facts(rollout: Rollout) -> dict[str, Any]:
    size = len(rollout.time_s)
    facts: dict[str, Any] = {name: getattr(rollout, name) for name in ("started_s", "fps", *COUNTS)}
    facts |= {name: _text(getattr(rollout, name)) for name in ("session", "task", "model", "encoder", "ended")}
    for head, curve in rollout.heads.items():
        facts[f"stages_{head}"] = [_text(name) for name in curve.stages]
        facts[f"final_{head}"] = float(curve.progress[-1]) if size else None
    return facts | {
        "episode_index": episode_number(facts["session"], rollout.started_s),
        "outcome": rollout.outcome,
        "duration_s": float(rollout.time_s[-1]) if size else 0.0,
        "num_rows": size,
        "thumbnail_times": [time_s for time_s, _ in rollout.thumbnails],
        "thumbnails": [content for _, content in rollout.thumbnails],
    }


def _rollout_of(row: dict[str, Any], columns: dict[str, np.ndarray], file: str) -> Rollout:
    heads = {
        head: HeadCurve(
            tuple(row[f"stages_{head}"]),
            columns[f"progress_{head}"],
            columns[f"stage_{head}"],
            columns[f"confidence_{head}"],
        )
        for head in HEADS
        if row[f"stages_{head}"] is not None
    }
    names = ("session", "started_s", "task", "fps", "model", "encoder", "ended", "outcome", *COUNTS)
    return Rollout(
        **{name: row[name] for name in names},
        heads=heads,
        time_s=columns["time_s"],
        frame_index=columns["frame_index"],
        thumbnails=tuple(zip(row.get("thumbnail_times") or (), row.get("thumbnails") or (), strict=True)),
        file=file,
    )


def _text(text: str) -> str:
    """Half of a surrogate pair, which JSON may hold, is no text: a mark stands for it."""
    return text.encode(errors="replace").decode()
