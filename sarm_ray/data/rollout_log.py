"""The log of live rollouts: what `serve --record` appends and `report` reads. Any folder that fsspec knows.

    FOLDER/rollouts-*.parquet            a row per scored frame: pandas.read_parquet(FOLDER) has all of them
    FOLDER/_rollouts/rollouts-*.parquet  a row per rollout: facts, counts, thumbnails; pandas passes over `_` names

An append makes one new file of each, of one name that no other process can choose, and the frames come last: rollouts are
in the log once their frames are. Nothing is ever written to again. `merge_rollouts` puts small files together, and may
run at any time beside writers, readers and itself, because a rollout that is recorded twice counts once (`best_records`).
"""

import functools
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.data import storage
from sarm_ray.data.rollouts import CURVES, FACTS_SCHEMA, Rollout, facts_table, frames_table, rollouts_of
from sarm_ray.errors import DatasetError

FACTS_FOLDER = "_rollouts"
MERGED_ROLLOUTS = 128  # of a file; with thumbnails some tens of MB
FEWEST_MERGED = 32  # files, unless they fill one: so that a rollout is not written anew time and again
ORPHAN_S = 86_400.0
NUM_TRIES = 5
THREADS = 16
THUMBNAILS = ("thumbnail_times", "thumbnails")
_NAME = re.compile(r"rollouts-(\d{13})-(\d{5})-[0-9a-f]{16}\.parquet")


def append_rollouts(folder: str, rollouts: Sequence[Rollout]) -> str | None:
    """Add rollouts to a log; all of them are in it when this returns, and none if it raises.

    Args:
        folder: a local path or a URL; made if it is not there.
        rollouts: any number; few large appends make fewer files than many small ones.

    Returns:
        The name of the new file; None where there are no rollouts.

    Raises:
        StoreError: nothing can be written there.
    """
    if not rollouts:
        return None
    location = storage.absolute(folder)
    name = f"rollouts-{int(time.time() * 1000):013d}-{min(len(rollouts), 99_999):05d}-{uuid.uuid4().hex[:16]}.parquet"
    tables = {f"{FACTS_FOLDER}/{name}": facts_table(rollouts), name: frames_table(rollouts)}
    for path, table in tables.items():  # the frames last
        storage.write_atomically(
            storage.join(location, path), functools.partial(pq.write_table, table, compression="zstd")
        )
    return name


def read_rollouts(folder: str, thumbnails: bool = True) -> list[Rollout]:
    """Everything in a log, in the order of start, each rollout once; what is appended meanwhile may be missing.

    Args:
        folder: a local path or a URL, which need not exist.
        thumbnails: without, nobody has any, and 10,000 rollouts of a minute need 300 MB.

    Raises:
        DatasetError: a file that is not what `append_rollouts` writes.
    """
    location = storage.absolute(folder)
    for _ in range(NUM_TRIES):
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                read = functools.partial(_read_file, location, thumbnails=thumbnails)
                return best_records(each for found in pool.map(read, _log_names(location)) for each in found)
        except FileNotFoundError as error:  # merged after it was listed
            missing = error
    raise DatasetError(f"{location}: a file of the log is gone ({missing})")


def read_thumbnails(folder: str, rollouts: Sequence[Rollout]) -> Iterator[tuple[int, tuple[tuple[float, bytes], ...]]]:
    """Thumbnails of rollouts that were read without, file by file: nothing is kept.

    Yields:
        Position in `rollouts`, and its thumbnails; nothing for those that have none.

    Raises:
        DatasetError: a file that is not what `append_rollouts` writes.
    """
    location = storage.absolute(folder)
    names = _log_names(location)
    wanted = {rollout.key: place for place, rollout in enumerate(rollouts)}
    for name in names:
        try:
            facts = _read_table(storage.join(location, FACTS_FOLDER, name), ["session", "started_s", *THUMBNAILS])
        except FileNotFoundError:  # merged after it was listed
            continue
        for row in facts.to_pylist():
            place = wanted.get((row["session"], row["started_s"]))
            if place is not None and rollouts[place].file in (name, *({rollouts[place].file} - set(names))):
                del wanted[row["session"], row["started_s"]]
                yield place, tuple(zip(row["thumbnail_times"], row["thumbnails"], strict=True))


def best_records(records: Iterable[Rollout]) -> list[Rollout]:
    """Each rollout once, in the order of start.

    A session that a replica lost is recorded there, and again where it went on. Of records of one session and start, one
    that the robot closed counts before others, then the one with the newest frame, then the one with more scored frames.
    """
    best: dict[tuple[str, float], Rollout] = {}
    for record in records:
        if record.key not in best or _rank(record) > _rank(best[record.key]):
            best[record.key] = record
    return sorted(best.values(), key=lambda rollout: (rollout.started_s, rollout.session))


def _rank(record: Rollout) -> tuple[bool, float, int, str]:
    last = float(record.time_s[-1]) if len(record.time_s) else -1.0
    return record.ended == "closed", last, len(record.time_s), record.file


def merge_rollouts(folder: str) -> int:
    """Put small files of a log together, and remove what killed writers left; returns how many files there are less.

    What is merged is written before anything is removed, so a crash leaves rollouts twice, and none too few.

    Raises:
        DatasetError: a file that is not what `append_rollouts` writes.
        StoreError: nothing can be written there.
    """
    location, num_less = storage.absolute(folder), 0
    for own in (location, storage.join(location, FACTS_FOLDER)):
        storage.remove_temporaries(own)
    _remove_orphans(location)
    for names in _groups(_log_names(location)):
        if len(names) == 1:
            continue
        try:
            records = [record for name in names for record in _read_file(location, name, thumbnails=True)]
        except FileNotFoundError:  # somebody else merges them
            continue
        append_rollouts(folder, best_records(records))
        for name in names:
            storage.remove_file(storage.join(location, name))
            storage.remove_file(storage.join(location, FACTS_FOLDER, name))
        num_less += len(names) - 1
    return num_less


def is_rollout_log(name: str) -> bool:
    """Whether a name is that of a folder that somebody recorded rollouts into. The Hub is not asked."""
    if name.startswith("hf://") or ("://" not in name and not Path(name).expanduser().is_dir()):
        return False
    return any(_NAME.fullmatch(each) for each in storage.list_names(storage.absolute(name)))


def _groups(names: list[str]) -> Iterator[list[str]]:
    """Small files that make a large one together, oldest first; a last group that does not only where they are many."""
    group: list[str] = []
    num_rollouts = 0
    for name in names:
        size = int(_NAME.fullmatch(name)[2])  # type: ignore[index]  # that is how they are listed
        if size >= MERGED_ROLLOUTS:
            continue
        if group and num_rollouts + size > MERGED_ROLLOUTS:
            yield group
            group, num_rollouts = [], 0
        group, num_rollouts = [*group, name], num_rollouts + size
    if len(group) >= FEWEST_MERGED or num_rollouts == MERGED_ROLLOUTS:
        yield group


def _log_names(location: str) -> list[str]:
    """Files of the log, oldest first."""
    return [name for name in storage.list_names(location) if _NAME.fullmatch(name)]


def _remove_orphans(location: str) -> None:
    """Facts whose frames never came, or were removed."""
    facts, there = storage.list_names(storage.join(location, FACTS_FOLDER)), set(_log_names(location))
    for name in facts:
        match = _NAME.fullmatch(name)
        if match and name not in there and time.time() - int(match[1]) / 1000 > ORPHAN_S:
            storage.remove_file(storage.join(location, FACTS_FOLDER, name))


def _read_file(location: str, name: str, thumbnails: bool) -> list[Rollout]:
    """The rollouts of one file of the log.

    Raises:
        FileNotFoundError: it is gone.
        DatasetError: it is not what `append_rollouts` writes.
    """
    facts = [each for each in FACTS_SCHEMA.names if thumbnails or each not in THUMBNAILS]
    tables = (
        _read_table(storage.join(location, FACTS_FOLDER, name), facts),
        _read_table(storage.join(location, name), [each for each, _ in CURVES]),
    )
    try:
        return rollouts_of(*tables, name)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{location}/{name}: {error}") from error


def _read_table(location: str, columns: list[str]) -> pa.Table:
    try:
        with storage.open_input(location) as stream, pq.ParquetFile(stream) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DatasetError(f"{location}: no column {missing[0]!r}; it was written by another version")
            return file.read(columns=columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error
