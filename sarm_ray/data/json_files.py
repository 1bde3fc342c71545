"""JSON of a dataset's metadata: single objects and lines as Python objects, and long files of lines as tables."""

import io
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from sarm_ray.data import storage
from sarm_ray.errors import DatasetError

JSON_BLOCK_BYTES = 16_000_000  # no line may be longer; blocks are parsed in parallel
TEXT_BLOCK_BYTES = 4 * JSON_BLOCK_BYTES  # of a file that are held at a time


def read_json(root: str, path: str, missing: dict | None = None) -> dict:
    """An object from a dataset's file of JSON; `missing` where there is no such file.

    Raises:
        DatasetError: no such file and no `missing`, malformed, or something other than an object.
    """
    location = storage.join(root, path)
    try:
        value = json.loads(storage.read_bytes(location))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise DatasetError(f"{root}: not a LeRobot dataset (there is no {path})") from None
    except ValueError as error:
        raise DatasetError(f"{location}: malformed JSON ({error})") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{location}: expected an object, found {type(value).__name__}")
    return value


def read_jsonl(root: str, path: str, missing: bool = False) -> list[dict]:
    """The objects in a dataset's file of JSON lines; none where it may be missing and is.

    Raises:
        DatasetError: no such file, or a malformed line, by its number.
    """
    location = storage.join(root, path)
    try:
        lines = storage.read_bytes(location).decode().split("\n")  # splitlines() would cut inside texts, at U+2028
    except FileNotFoundError:
        if missing:
            return []
        raise DatasetError(f"{root}: there is no {path}") from None
    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                raise DatasetError(f"{location}: line {number}: malformed JSON ({error})") from error
    return entries


def read_json_lines(location: str, schema: pa.Schema) -> pa.Table:
    """Fields of a file of JSON lines, several hundred megabytes a second; what a line does not have is null.

    Raises:
        pa.ArrowException, OSError: malformed, of another type, or not there.
    """
    return pa.concat_tables([schema.empty_table(), *read_json_blocks(location, schema)])


def read_json_blocks(location: str, schema: pa.Schema, block_bytes: int = TEXT_BLOCK_BYTES) -> Iterator[pa.Table]:
    """`read_json_lines` block by block, in the order of the file: gigabytes of statistics are never held as text.

    Raises:
        pa.ArrowException, OSError: as `read_json_lines`, when the place is reached.
    """
    begun: list[bytes] = []  # of a block: pieces so far, the first one without the lines of the block before
    size, piece_bytes = storage.size_of(storage.file_stamp(location)), min(storage.PIECE_BYTES, block_bytes)
    for piece in storage.read_pieces(location, size, piece_bytes):
        end = piece.rfind(b"\n") + 1
        if not end or sum(map(len, begun)) + end < block_bytes:
            begun.append(piece)
            continue
        yield from _parse_lines(b"".join([*begun, piece[:end]]), schema)
        begun = [piece[end:]]
    yield from _parse_lines(b"".join(begun), schema)


def _parse_lines(text: bytes, schema: pa.Schema) -> Iterator[pa.Table]:
    """A table of whole lines; none where there is no line."""
    text = text.strip()
    if not text:
        return
    codes = np.frombuffer(text, dtype=np.uint8)
    begins = codes[np.concatenate([[0], np.flatnonzero(codes[:-1] == ord("\n")) + 1])]
    if not np.isin(begins, list(b"{\r\n")).all():
        raise pa.ArrowInvalid("a line is no JSON object")  # pyarrow 26 crashes on a line that says null
    yield pj.read_json(
        io.BytesIO(text),
        read_options=pj.ReadOptions(block_size=JSON_BLOCK_BYTES),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
