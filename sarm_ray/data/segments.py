"""Segments of episodes in files that people make or correct: CSV, JSON, JSON lines or parquet in; CSV out.

One row, or record, is one segment:

    episode_index           of the dataset
    kind                    sparse or dense; may be left out where the caller says which
    name                    of the subtask; `subtask` and `label` are taken as well
    start_s, end_s          seconds from the beginning of the episode, or a clock such as 00:12.5
    start_frame, end_frame  frames of the episode. They count where there are no seconds: it is enough to correct those

JSON is a list of such records, or {"episodes": {"<episode_index>": [record, ...]}}. Further columns are not looked at.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.core.subtasks import FrameSubtasks, Subtask, parse_time
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import Annotations
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import DatasetError, name_list, nearest

KINDS = ("sparse", "dense")
NAME_COLUMNS = ("name", "subtask", "label")
CSV_COLUMNS = ("episode_index", "kind", "name", "start_s", "end_s", "start_frame", "end_frame")
READ_COLUMNS = (*CSV_COLUMNS, *NAME_COLUMNS[1:])
MAX_FILE_BYTES = 256 * 2**20
MAX_SEGMENTS = 2_000_000
MAX_FRAME = 2**40

Record = Mapping[str, Any]


def read_segments(location: str, kind: str | None, fps: float) -> dict[str, dict[int, list[Subtask]]]:
    """The segments in a file, in the order of their starts.

    Args:
        location: of the file; its ending says what it is: .csv, .json, .jsonl, .parquet.
        kind: of rows that do not say theirs.
        fps: of the dataset. A frame becomes the second at which it is shown; `segment_frames` makes the same frame of it.

    Returns:
        kind -> episode_index -> segments; nothing is checked but that each can be read (see `core.subtasks.take_subtasks`).

    Raises:
        DatasetError: no such file, another format, too large, or a row that cannot be read, by its number.
        StoreError: the store that holds it does not answer or refuses us.
    """
    location = storage.absolute(location)
    ending = location.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    if ending not in _READERS:
        raise DatasetError(f"{location}: segments are read from {name_list(f'.{each}' for each in _READERS)} files")
    segments: dict[str, dict[int, list[Subtask]]] = {}
    try:
        size = storage.size_of(storage.file_stamp(location))
        if size > MAX_FILE_BYTES:
            raise DatasetError(f"{location}: {size:,} bytes; up to {MAX_FILE_BYTES:,} are read, divide it")
        for count, (place, record) in enumerate(_READERS[ending](location)):
            if count >= MAX_SEGMENTS:
                raise DatasetError(f"{location}: more than {MAX_SEGMENTS:,} segments; divide it")
            try:
                own, episode, segment = _segment(record, kind, fps)
            except ValueError as error:
                raise DatasetError(f"{location}: {place}: {error}") from error
            segments.setdefault(own, {}).setdefault(episode, []).append(segment)
    except FileNotFoundError:
        raise DatasetError(f"{location}: no such file") from None
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, csv.Error, ValueError, RecursionError) as error:
        raise DatasetError(f"{location}: not a readable .{ending} file ({str(error).splitlines()[0]})") from error
    if not segments:
        raise DatasetError(f"{location}: there are no segments in it; each is a row with {name_list(CSV_COLUMNS)}")
    return {own: {e: sorted(each, key=_start) for e, each in sorted(found.items())} for own, found in segments.items()}


def _start(segment: Subtask) -> float:
    return segment.start_s


def segment_frames(segments: Sequence[Subtask], fps: float) -> FrameSubtasks:
    """The frames nearest to the bounds of segments, as they are: what was exported comes back to the frame. Whether they
    cover the episode is asked elsewhere (`core.subtasks.check_subtasks`).
    """
    start, end = ([round(getattr(each, side) * fps) for each in segments] for side in ("start_s", "end_s"))
    return FrameSubtasks(tuple(each.name for each in segments), tuple(start), tuple(end))


def annotated_subtasks(dataset: Dataset, own: Annotations) -> dict[int, FrameSubtasks]:
    """What is annotated, in the order in which it is stored: episode_index -> subtasks. Broken annotations are not in it."""
    found = {}
    for row in own.annotated.nonzero()[0].tolist():
        part = slice(own.offsets[row], own.offsets[row + 1])
        names = tuple(own.stages[number] for number in own.stage[part].tolist())
        start, end = tuple(own.start[part].tolist()), tuple(own.end[part].tolist())
        found[int(dataset.episode_index[row])] = FrameSubtasks(names, start, end)
    return found


def write_segments_csv(location: str, dataset: Dataset, subtasks: Mapping[str, Mapping[int, FrameSubtasks]]) -> None:
    """The CSV that people correct and give back to `read_segments`: seconds to a millionth, and frames beside them.

    Args:
        location: of the file; one that is there is replaced.
        dataset: whose fps it is.
        subtasks: kind -> episode_index -> subtasks.

    Raises:
        StoreError: it cannot be written there.
    """
    text = io.StringIO()
    writer = csv.writer(text)  # lines end in \r\n: before Python 3.13 a \r inside a name is quoted only so
    writer.writerow(CSV_COLUMNS)
    for episode in sorted({episode for own in subtasks.values() for episode in own}):
        for kind in (kind for kind in KINDS if episode in subtasks.get(kind, {})):
            for name, start, end in zip(*subtasks[kind][episode], strict=True):
                seconds = [_spelled(frame / dataset.fps) for frame in (start, end)]
                writer.writerow([episode, kind, name, *seconds, start, end])
    storage.write_file(storage.absolute(location), text.getvalue().encode())


def _spelled(seconds: float) -> str:
    """Few enough digits for `parse_time`, and enough for the frame."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


# ---------------------------------------------------------------------------------------------------------- one record


def _segment(record: Record, default_kind: str | None, fps: float) -> tuple[str, int, Subtask]:
    """Kind, episode and segment of a record whose keys are in lower case.

    Raises:
        ValueError: naming the column.
    """
    kind = record.get("kind") if record.get("kind") is not None else default_kind
    if kind is None:
        raise ValueError("it has no kind; add a column kind with sparse or dense, or say which all of them are")
    if not isinstance(kind, str) or kind.strip().lower() not in KINDS:
        raise ValueError(f"kind is {kind!r:.60}, not sparse or dense")
    column = next((each for each in NAME_COLUMNS if record.get(each) is not None), None)
    if column is None:
        raise ValueError(_absent(record, "name"))
    name = record[column]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{column} is {name!r:.60}, not the name of a subtask")
    if record.get("episode_index") is None:
        raise ValueError(_absent(record, "episode_index"))
    episode = _whole("episode_index", record["episode_index"])
    segment = Subtask(name.strip(), _bound(record, "start", fps), _bound(record, "end", fps))
    return kind.strip().lower(), episode, segment


def _bound(record: Record, side: str, fps: float) -> float:
    """Seconds of a bound."""
    seconds, frame = f"{side}_s", f"{side}_frame"
    if record.get(seconds) is not None:
        try:
            return parse_time(record[seconds])
        except ValueError as error:
            raise ValueError(f"{seconds}: {error}") from error
    if record.get(frame) is not None:
        return _whole(frame, record[frame]) / fps
    raise ValueError(_absent(record, seconds, f" and no {frame}"))


def _whole(column: str, value: Any) -> int:
    """A whole number, also one that a table program made a float of."""
    if isinstance(value, str):
        whole, _, rest = value.strip().partition(".")
        number = int(whole) if whole.isascii() and whole.isdigit() and len(whole) < 16 and not rest.strip("0") else -1
    elif isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0:  # not inf, nan
        number = int(value)
    else:
        number = -1
    if not 0 <= number <= MAX_FRAME:
        raise ValueError(f"{column} is {value!r:.60}, not a whole number from 0 on")
    return number


def _absent(record: Record, column: str, also: str = "") -> str:
    if column in record:
        return f"{column} is empty" + (also and f",{also}")
    return f"no {column}{also}{nearest(column, record)}; it has {name_list(record)}"


# ------------------------------------------------------------------------------------------------------------- formats


def _csv_records(location: str) -> Iterator[tuple[str, Record]]:
    """Rows as a table program numbers them, the header being row 1. Commas, semicolons and tabs may stand between cells."""
    text = _text(location)
    header_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=header_line.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [cell.strip().lower() for cell in next(rows, [])]
    for number, cells in enumerate(rows, 2):
        if any(cell.strip() for cell in cells[len(header) :]):
            raise DatasetError(
                f"{location}: row {number} has {len(cells)} cells, the header has {len(header)}; put a name with "
                f"{delimiter!r} in it into quotes"
            )
        record = {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=False)}
        if any(cell is not None for cell in record.values()):
            yield f"row {number}", {name: record.get(name) for name in header}


def _json_records(location: str) -> Iterator[tuple[str, Record]]:
    value = json.loads(_text(location))
    episodes = value.get("episodes") if isinstance(value, dict) else None
    if isinstance(value, list):
        for number, record in enumerate(value, 1):
            yield from _record(location, f"record {number}", record)
    elif isinstance(episodes, dict) and all(isinstance(records, list) for records in episodes.values()):
        for episode, records in episodes.items():
            for number, record in enumerate(records, 1):
                own = {**record, "episode_index": episode} if isinstance(record, dict) else record
                yield from _record(location, f"episode {episode[:60]}, record {number}", own)
    else:
        raise DatasetError(f'{location}: neither a list of records nor {{"episodes": {{"0": [record, ...], ...}}}}')


def _jsonl_records(location: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(_text(location).split("\n"), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"{location}: line {number}: malformed JSON ({error})") from error
            yield from _record(location, f"line {number}", record)


def _record(location: str, place: str, record: Any) -> Iterator[tuple[str, Record]]:
    if not isinstance(record, dict):
        raise DatasetError(f"{location}: {place}: {record!r:.60} is no object with {name_list(CSV_COLUMNS)}")
    yield place, {key.strip().lower(): value for key, value in record.items()}


def _parquet_records(location: str) -> Iterator[tuple[str, Record]]:
    with storage.open_input(location) as stream, pq.ParquetFile(stream) as file:
        if file.metadata.num_rows > MAX_SEGMENTS:
            raise DatasetError(
                f"{location}: {file.metadata.num_rows:,} rows; up to {MAX_SEGMENTS:,} are read, divide it"
            )
        columns = [name for name in file.schema_arrow.names if name.strip().lower() in READ_COLUMNS]
        number = 0
        for batch in file.iter_batches(columns=columns or file.schema_arrow.names[:1]):
            for record in batch.to_pylist():
                number += 1
                nulls = {key for key, value in record.items() if value is None or value != value}  # pandas' NaN
                yield f"row {number}", {k.strip().lower(): None if k in nulls else v for k, v in record.items()}


def _text(location: str) -> str:
    try:
        return storage.read_bytes(location).decode("utf-8-sig")  # table programs begin with a mark
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{location}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


_READERS = {"csv": _csv_records, "json": _json_records, "jsonl": _jsonl_records, "parquet": _parquet_records}
