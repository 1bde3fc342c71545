"""The feature store: every frame encoded once, ever.

A store is a folder for one (camera, encoder weights, preprocessing, precision, dtype); a run never reads features that
were made otherwise. Its parquet files ("parts") hold one row per chunk, one row group each:

    episode_index int64, start int64   the chunk
    frames binary(32)                  bitmap of the frames it holds; work to do is a set difference by frame
    layout int64, source int64         what the features were made from: place in the dataset, and the file's stamp
    features large_binary              (k, D) little-endian numbers, the frames in ascending order

All columns but the features are also in the file's key-value metadata (INDEX_KEY: base64 of INDEX_DTYPE rows), so that
what a part holds is known after one read at its end; in the rows it is spread over the whole file.

A row whose layout or source differs from the dataset's counts as absent, so a re-recorded file is encoded again and an
annotation run invalidates nothing. Where the source file is gone, rows with the right layout still count: a dataset
whose videos were archived can be scored again. Several rows of one chunk (a denser stride came later) add up.
"""

import base64
import functools
import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarm_ray.core.episodes import BITMAP_BYTES, CHUNK_FRAMES, Chunks, chunk_keys, frames_of
from sarm_ray.data import storage
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import StoreError

PREPROCESSING_VERSION = 1
SMALL_PART_BYTES = 8 * 2**20
MERGED_PART_BYTES = 64 * 2**20
NUM_SMALL_PARTS = 64
MAX_LISTINGS = 10
NO_SOURCE = 0

SCHEMA = pa.schema(
    [
        ("episode_index", pa.int64()),
        ("start", pa.int64()),
        ("frames", pa.binary(BITMAP_BYTES)),
        ("layout", pa.int64()),
        ("source", pa.int64()),
        ("features", pa.large_binary()),
    ]
)
INDEX_COLUMNS = ["episode_index", "start", "frames", "layout", "source"]
INDEX_DTYPE = np.dtype([(name, "u1", (BITMAP_BYTES,)) if name == "frames" else (name, "<i8") for name in INDEX_COLUMNS])
INDEX_KEY = b"sarm_ray.index"


@dataclass(frozen=True)
class FeatureKey:
    """What a store's features depend on, besides the frames."""

    camera: str
    encoder: str
    weights: str
    image_size: int
    feature_dim: int
    precision: str
    dtype: str
    preprocessing: int = PREPROCESSING_VERSION

    @property
    def folder(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return f"{_slug(self.camera)}/{_slug(self.encoder)}-{self.precision}-{self.dtype}-{digest}"


@dataclass(frozen=True)
class FeatureStore:
    """A store's place and the shape of what is in it."""

    location: str
    feature_dim: int
    dtype: str


@dataclass(frozen=True)
class StoreIndex:
    """Rows of a store that are true of the dataset, ordered by chunk.

    Args:
        parts: file names.
        chunk: (R,) int64, position of the row's chunk in the plan.
        frames: (R, BITMAP_BYTES) uint8.
        part: (R,) int64, position in `parts`.
        row: (R,) int64, row group inside the part.
    """

    parts: tuple[str, ...]
    chunk: np.ndarray
    frames: np.ndarray
    part: np.ndarray
    row: np.ndarray


def open_store(dataset: Dataset, key: FeatureKey, cache: str | None) -> FeatureStore:
    """A dataset's store for a key: in `cache`, else beside a writable local dataset, else in the user's cache."""
    own = dataset.repo_id is None and storage.is_local(dataset.root)
    if cache is None and own and all(map(storage.is_writable_folder, (dataset.root, storage.parent(dataset.root)))):
        return FeatureStore(f"{dataset.root}.sarm_features/{key.folder}", key.feature_dim, key.dtype)
    base = storage.join(storage.user_cache(), "features") if cache is None else storage.absolute(cache)
    identity = dataset.repo_id or dataset.root
    owner = f"{_slug(dataset.name)}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return FeatureStore(storage.join(base, owner, key.folder), key.feature_dim, key.dtype)


def describe_store(store: FeatureStore, key: FeatureKey) -> None:
    """Leave the key beside the features, for people."""
    location = storage.join(store.location, "key.json")
    if not storage.exists(location):
        text = json.dumps(asdict(key), indent=2).encode()
        storage.write_atomically(location, lambda stream: stream.write(text))


def fingerprint_sources(dataset: Dataset, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """What each episode's features are made from: layout (E,) int64 and source (E,) int64.

    Layout covers the episode's number, length, file, place in the file, and the frame rate; source the file's size and
    mtime or etag, and is NO_SOURCE where the file is gone.
    """
    files = dataset.camera_files(camera)
    stamps = [dataset.files.get(path) for path in files.paths]
    source = np.array([NO_SOURCE if stamp is None else _hash64(stamp) for stamp in stamps], dtype=np.int64)
    layout = [
        _hash64(f"{episode}/{length}/{files.paths[file]}/{start:.6f}/{dataset.fps}/{camera}")
        for episode, length, file, start in zip(
            *(a.tolist() for a in (dataset.episode_index, dataset.length, files.file, files.from_timestamp)),
            strict=True,
        )
    ]
    return np.array(layout, dtype=np.int64), source[files.file]


def write_part(store: FeatureStore, table: pa.Table, name: str) -> None:
    """Commit rows: after this call they are there, before it they are not."""

    table = table.replace_schema_metadata(None)  # a merged part would inherit the index of one that went into it
    index = base64.b64encode(_index_rows(table).tobytes())

    def write(stream):
        options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(stream, table.schema, **options) as writer:
            writer.write_table(table, row_group_size=1)
            writer.add_key_value_metadata({INDEX_KEY: index})

    storage.write_atomically(storage.join(store.location, f"{name}.parquet"), write)


def commit_features(encoded: pa.Table, stores: list[FeatureStore]) -> Iterator[pa.Table]:
    """Encoded chunks in; when their status rows come out, they are in the stores.

    Args:
        encoded: SCHEMA's columns, `features` null where the chunk failed, `dataset`, and what else is to be reported.
        stores: of the datasets; the chunks of each go into one part.

    Yields:
        The rows without features, with num_frames.
    """
    for number in encoded["dataset"].unique().to_pylist():
        yield _commit(encoded.filter(pc.equal(encoded["dataset"], number)).combine_chunks(), stores[number])


def _commit(encoded: pa.Table, store: FeatureStore) -> pa.Table:
    good = encoded.filter(encoded["features"].is_valid()).select(SCHEMA.names)
    if good.num_rows:
        write_part(store, good, uuid.uuid4().hex)
    num_frames = [len(frames_of(bitmap, 0)) for bitmap in encoded["frames"].to_pylist()]
    return encoded.drop_columns(["features"]).append_column("num_frames", pa.array(num_frames, type=pa.int64()))


def read_index(
    store: FeatureStore, chunks: Chunks, episode_index: np.ndarray, layout: np.ndarray, source: np.ndarray
) -> StoreIndex:
    """What the store holds of a plan.

    Args:
        store: the store.
        chunks: C planned chunks.
        episode_index, layout, source: (E,) int64 of the dataset.
    """
    parts, indices = _read_indices(store)
    counts = [len(rows) for rows in indices]
    if not sum(counts):
        empty = np.zeros(0, dtype=np.int64)
        return StoreIndex((), empty, np.zeros((0, BITMAP_BYTES), dtype=np.uint8), empty, empty)
    rows = np.concatenate(indices)
    part = np.repeat(np.arange(len(parts)), counts)
    row = np.concatenate([np.arange(count) for count in counts])
    frames = np.ascontiguousarray(rows["frames"])
    chunk = _find_chunks(rows, chunks, episode_index)
    planned = chunk >= 0
    owner = chunks.row[np.where(planned, chunk, 0)]
    valid = planned & (rows["layout"] == layout[owner])
    made_from = rows["source"]
    valid &= (made_from == source[owner]) | ((source[owner] == NO_SOURCE) & _unambiguous(owner, made_from, valid))
    order = np.flatnonzero(valid)[np.argsort(chunk[valid], kind="stable")]
    return StoreIndex(tuple(parts), chunk[order], frames[order], part[order], row[order])


def held_frames(index: StoreIndex, num_chunks: int) -> np.ndarray:
    """Bitmaps of what the store holds: (num_chunks, BITMAP_BYTES) uint8."""
    held = np.zeros((num_chunks, BITMAP_BYTES), dtype=np.uint8)
    np.bitwise_or.at(held, index.chunk, index.frames)
    return held


def read_chunk(store: FeatureStore, index: StoreIndex, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """All features of one chunk.

    Returns:
        (CHUNK_FRAMES, D) of the store's dtype, zero where absent; (CHUNK_FRAMES,) bool, which frames are there.
    """
    features = np.zeros((CHUNK_FRAMES, store.feature_dim), dtype=store.dtype)
    present = np.zeros(CHUNK_FRAMES, dtype=bool)
    first, last = np.searchsorted(index.chunk, [chunk, chunk + 1])
    for entry in range(first, last):
        frames = frames_of(index.frames[entry].tobytes(), 0)
        location = storage.join(store.location, index.parts[index.part[entry]])
        with storage.open_input(location) as stream, pq.ParquetFile(stream) as file:
            cell = file.read_row_group(int(index.row[entry]), columns=["features"])["features"].chunk(0)[0]
            values = np.frombuffer(cell.as_buffer(), dtype=store.dtype)
        features[frames] = values.reshape(len(frames), store.feature_dim)
        present[frames] = True
    return features, present


def plan_compaction(store: FeatureStore) -> list[list[str]]:
    """Groups of small parts worth merging: none while there are few."""
    listed = storage.list_files(store.location)
    sizes = {name: storage.size_of(stamp) for name, stamp in listed.items() if name.endswith(".parquet")}
    small = sorted(name for name, size in sizes.items() if size < SMALL_PART_BYTES)
    if len(small) < NUM_SMALL_PARTS:
        return []
    groups: list[list[str]] = [[]]
    total = 0
    for name in small:
        if total and total + sizes[name] > MERGED_PART_BYTES:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += sizes[name]
    return groups


def compact_parts(store: FeatureStore, names: list[str]) -> None:
    """Write several parts as one, then remove them. A crash between the two leaves rows twice, which readers add up.

    Where another run is merging too, what it has removed already is in its own merged part.
    """
    tables = [table for table in (_read_part(store, name) for name in names) if table is not None]
    if len(tables) < len(names):
        return
    digest = hashlib.sha256("/".join(names).encode()).hexdigest()[:16]
    write_part(store, pa.concat_tables(tables), f"merged-{digest}")
    for name in names:
        storage.remove_file(storage.join(store.location, name))


def _read_part(store: FeatureStore, name: str) -> pa.Table | None:
    """A part, or None where another run has just merged it away."""
    try:
        with storage.open_input(storage.join(store.location, name)) as stream:
            return pq.read_table(stream)
    except FileNotFoundError:
        return None


def _read_indices(store: FeatureStore) -> tuple[list[str], list[np.ndarray]]:
    """The names of all parts, and of each the rows without features.

    Where another run merged a part away after it was listed, its rows are in one that was not: all is listed again.

    Raises:
        StoreError: the store changes faster than it can be read.
    """
    for _ in range(MAX_LISTINGS):
        parts = sorted(name for name in storage.list_files(store.location) if name.endswith(".parquet"))
        with ThreadPoolExecutor(16) as pool:
            indices = list(pool.map(functools.partial(_read_part_index, store), parts))
        whole = [index for index in indices if index is not None]
        if len(whole) == len(parts):
            return parts, whole
    raise StoreError(f"{store.location}: parts vanish while they are read; let the other runs on this store end first")


def _read_part_index(store: FeatureStore, name: str) -> np.ndarray | None:
    """All but the features of a part's rows: (R,) INDEX_DTYPE; None where another run has just merged the part away."""
    try:
        # ParquetFile, since read_table takes 5 times as long for a file of many row groups
        with storage.open_input(storage.join(store.location, name)) as stream, pq.ParquetFile(stream) as file:
            stored = (file.metadata.metadata or {}).get(INDEX_KEY)
            if stored is None:  # written before parts had one
                return _index_rows(file.read(columns=INDEX_COLUMNS, use_threads=False))
            return np.frombuffer(base64.b64decode(stored), dtype=INDEX_DTYPE)
    except FileNotFoundError:
        return None


def _index_rows(table: pa.Table) -> np.ndarray:
    """INDEX_COLUMNS of a table as (R,) INDEX_DTYPE."""
    rows = np.zeros(table.num_rows, dtype=INDEX_DTYPE)
    for name in INDEX_COLUMNS:
        if name == "frames":
            bitmaps = b"".join(table[name].to_pylist())
            rows[name] = np.frombuffer(bitmaps, dtype=np.uint8).reshape(-1, BITMAP_BYTES)
        else:
            rows[name] = table[name].to_numpy()
    return rows


def _find_chunks(rows: np.ndarray, chunks: Chunks, episode_index: np.ndarray) -> np.ndarray:
    """Position in the plan of each store row's chunk, -1 where it is not planned."""
    planned = chunk_keys(episode_index[chunks.row], chunks.start)
    order = np.argsort(planned, kind="stable")
    wanted = chunk_keys(rows["episode_index"], rows["start"])
    place = np.minimum(np.searchsorted(planned[order], wanted), len(planned) - 1)
    return np.where(planned[order][place] == wanted, order[place], -1)


def _unambiguous(owner: np.ndarray, made_from: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Rows of episodes whose valid rows were all made from one recording: (R,) bool.

    Where the file is gone, nothing says which of two recordings was the last one; neither is guessed.
    """
    recordings = np.unique(np.stack([owner[valid], made_from[valid]], axis=1), axis=0)
    episodes, counts = np.unique(recordings[:, 0], return_counts=True)
    return np.isin(owner, episodes[counts == 1])


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True) | 1


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "unnamed"
