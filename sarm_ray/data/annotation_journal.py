"""The journal of an annotation run: each episode's answers, written the moment they are there.

A file per kind and episode while a run goes on, so that a crash costs the episodes that were being asked and no other. At
its end all go into one parquet file, which is the audit: every answer, what was wrong with it, tokens and seconds.
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.core.subtasks import FrameSubtasks
from sarm_ray.data import storage
from sarm_ray.errors import DatasetError

BY_HAND = "by hand"  # in place of a question: what a person gave stands until it is overwritten
JOURNAL_FOLDER, JOURNAL_FILE = "journal", "journal.parquet"
THREADS = 16
SCHEMA = pa.schema(
    [
        ("episode_index", pa.int64()),
        ("kind", pa.string()),
        ("question", pa.string()),
        ("length", pa.int64()),
        ("names", pa.list_(pa.string())),
        ("start_frames", pa.list_(pa.int64())),
        ("end_frames", pa.list_(pa.int64())),
        ("is_uniform", pa.bool_()),
        ("error", pa.string()),
        ("attempts", pa.string()),
    ]
)

Journal = dict[tuple[str, int], "Entry"]


@dataclass(frozen=True)
class Entry:
    """What became of one question about one episode.

    Args:
        episode_index, kind: which.
        question: the key of what was asked, see `Question.key`, or BY_HAND.
        length: frames of the episode then; of another one it is no answer.
        subtasks: None where it failed.
        is_uniform: the subtasks are equally long.
        error: why it failed.
        attempts: of each answer `answer`, `objections`, `num_prompt_tokens`, `num_answer_tokens`, `seconds`.
    """

    episode_index: int
    kind: str
    question: str
    length: int
    subtasks: FrameSubtasks | None
    is_uniform: bool
    error: str | None
    attempts: list[dict[str, Any]]


def write_entry(folder: str, entry: Entry) -> None:
    """Put an entry into the journal of a run folder, whole or not at all."""
    storage.write_file(_place(folder, entry.kind, entry.episode_index), json.dumps(_to_row(entry)).encode())


def read_entry(folder: str, kind: str, episode_index: int) -> Entry | None:
    """An entry that this run has written, or None."""
    try:
        return _read(_place(folder, kind, episode_index))
    except FileNotFoundError:
        return None


def read_journal(folder: str) -> Journal:
    """All entries, by kind and episode; what this run has written counts before what an earlier one has.

    Raises:
        DatasetError: a file of the journal that is none.
    """
    journal = {(entry.kind, entry.episode_index): entry for entry in _read_file(folder)}
    root = storage.join(folder, JOURNAL_FOLDER)
    places = [storage.join(root, path) for path in sorted(storage.list_files(root)) if path.endswith(".json")]
    with ThreadPoolExecutor(THREADS) as pool:
        journal |= {(entry.kind, entry.episode_index): entry for entry in pool.map(_read, places)}
    return journal


def close_journal(folder: str, journal: Journal) -> None:
    """Put everything into the one file, and remove the others."""
    rows = [_to_row(journal[key]) for key in sorted(journal)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    storage.write_atomically(
        storage.join(folder, JOURNAL_FILE), lambda stream: pq.write_table(table, stream, compression="zstd")
    )
    storage.remove_folder(storage.join(folder, JOURNAL_FOLDER))


def by_hand(episode_index: int, kind: str, length: int, subtasks: FrameSubtasks) -> Entry:
    """What a person or another tool gave."""
    return Entry(episode_index, kind, BY_HAND, length, subtasks, False, None, [])


def _place(folder: str, kind: str, episode_index: int) -> str:
    return storage.join(folder, JOURNAL_FOLDER, kind, f"episode_{episode_index:06d}.json")


def _read(location: str) -> Entry:
    try:
        return _from_row(json.loads(storage.read_bytes(location)))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{location}: not an entry of a journal ({error}); remove it to ask again") from error


def _read_file(folder: str) -> Iterable[Entry]:
    location = storage.join(folder, JOURNAL_FILE)
    if not storage.exists(location):
        return []
    try:
        with storage.open_input(location) as stream:
            return [_from_row(row) for row in pq.read_table(stream, schema=SCHEMA).to_pylist()]
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{location}: not a journal ({error}); remove it to ask again") from error


def _to_row(entry: Entry) -> dict[str, Any]:
    names, start, end = entry.subtasks or (None, None, None)
    return {
        "episode_index": entry.episode_index,
        "kind": entry.kind,
        "question": entry.question,
        "length": entry.length,
        "names": names,
        "start_frames": start,
        "end_frames": end,
        "is_uniform": entry.is_uniform,
        "error": entry.error,
        "attempts": json.dumps(entry.attempts),
    }


def _from_row(row: dict[str, Any]) -> Entry:
    subtasks = None
    if row["names"] is not None:
        subtasks = FrameSubtasks(tuple(row["names"]), tuple(row["start_frames"]), tuple(row["end_frames"]))
    return Entry(
        episode_index=int(row["episode_index"]),
        kind=str(row["kind"]),
        question=str(row["question"]),
        length=int(row["length"]),
        subtasks=subtasks,
        is_uniform=bool(row["is_uniform"]),
        error=row["error"],
        attempts=json.loads(row["attempts"]),
    )
