"""The feature store: what is in it counts when, and only when, it is true of the dataset."""

import base64
import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarm_ray.core.episodes import CHUNK_FRAMES, Chunks, frames_of, pack_frames, plan_chunks
from sarm_ray.core.windows import Window, bitmaps_by_length, needed_frames
from sarm_ray.data import features as store_module
from sarm_ray.data import storage
from sarm_ray.data.features import (
    SCHEMA,
    FeatureKey,
    FeatureStore,
    compact_parts,
    describe_store,
    fingerprint_sources,
    held_frames,
    open_store,
    plan_compaction,
    read_chunk,
    read_index,
    write_part,
)
from sarm_ray.data.lerobot import Dataset, open_dataset
from tests.datasets import CAMERA, write_dataset, write_video

KEY = FeatureKey(CAMERA, "efficientnet-lite0", "0a1b", 224, 3, "fp32", "float32")
LENGTHS = np.array([300, 40, 520])
EPISODES = np.array([0, 1, 5])
LAYOUT, SOURCE = np.array([11, 12, 13]), np.array([101, 102, 101])
CHUNKS = plan_chunks(np.arange(3), LENGTHS)


@pytest.fixture(params=["path", "file", "memory"])
def store(request, tmp_path) -> FeatureStore:
    place = {"path": f"{tmp_path}/s", "file": f"file://{tmp_path}/s", "memory": f"memory://{tmp_path}/s"}
    return FeatureStore(place[request.param], 3, "float32")


def feature(episode: int, frame: np.ndarray) -> np.ndarray:
    """What the store holds of a frame in these tests: (k, 3)."""
    return np.stack([np.full(len(frame), episode), frame, frame * 0.5], axis=1).astype(np.float32)


def row(
    chunk: int, frames: list[int], layout: np.ndarray = LAYOUT, source: np.ndarray = SOURCE, episode: int | None = None
):
    """A store row: the given frames (counted inside the episode) of a planned chunk."""
    owner, start = CHUNKS.row[chunk], int(CHUNKS.start[chunk])
    mask = np.zeros(CHUNK_FRAMES, dtype=bool)
    mask[np.array(frames, dtype=int) - start] = True
    number = int(EPISODES[owner]) if episode is None else episode
    return {
        "episode_index": number,
        "start": start,
        "frames": pack_frames(mask)[0].tobytes(),
        "layout": int(layout[owner]),
        "source": int(source[owner]),
        "features": feature(number, np.array(sorted(frames))).tobytes(),
    }


def put(store: FeatureStore, name: str, *rows: dict) -> None:
    write_part(store, pa.Table.from_pylist(list(rows), schema=SCHEMA), name)


def index_of(store: FeatureStore, source: np.ndarray = SOURCE, layout: np.ndarray = LAYOUT, chunks: Chunks = CHUNKS):
    return read_index(store, chunks, EPISODES, layout, source)


def contents(store: FeatureStore, **truth: np.ndarray) -> dict[int, dict[int, tuple[float, ...]]]:
    """chunk -> frame -> feature, read through the public functions, the bitmaps checked against the features."""
    index = index_of(store, **truth)
    held = held_frames(index, len(CHUNKS))
    found = {}
    for chunk in range(len(CHUNKS)):
        values, present = read_chunk(store, index, chunk)
        assert values.shape == (CHUNK_FRAMES, 3)
        assert np.flatnonzero(present).tolist() == frames_of(held[chunk], 0).tolist()
        assert not values[~present].any()
        start = int(CHUNKS.start[chunk])
        if present.any():
            found[chunk] = {start + int(k): tuple(values[k].tolist()) for k in np.flatnonzero(present)}
    return found


def expected(frames_by_chunk: dict[int, list[int]]) -> dict[int, dict[int, tuple[float, ...]]]:
    return {
        chunk: {
            frame: tuple(feature(int(EPISODES[CHUNKS.row[chunk]]), np.array([frame]))[0].tolist()) for frame in frames
        }
        for chunk, frames in frames_by_chunk.items()
    }


# ------------------------------------------------------------------------------------------------- writing and reading


def test_an_empty_store(store):
    assert contents(store) == {}
    assert plan_compaction(store) == []
    index = index_of(store)
    assert (index.parts, len(index.chunk), held_frames(index, 6).any()) == ((), 0, False)


def test_what_is_written_is_read(store):
    put(store, "a", row(0, [0, 7, 255]), row(1, [256, 299]))
    put(store, "b", row(5, [512, 519]), row(2, list(range(40))))
    assert contents(store) == expected({0: [0, 7, 255], 1: [256, 299], 2: list(range(40)), 5: [512, 519]})
    index = index_of(store)
    assert index.parts == ("a.parquet", "b.parquet")
    assert index.chunk.tolist() == [0, 1, 2, 5]
    assert index.part.tolist() == [0, 0, 1, 1]
    assert index.row.tolist() == [0, 1, 1, 0]


def test_parts_have_one_row_group_per_chunk_and_the_documented_columns(tmp_path):
    put(FeatureStore(str(tmp_path), 3, "float32"), "a", row(0, [1]), row(1, [256]), row(2, [0]))
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert file.metadata.num_row_groups == 3
        assert file.schema_arrow.names == ["episode_index", "start", "frames", "layout", "source", "features"]
        assert file.schema_arrow.field("frames").type == pa.binary(32)


def test_parts_written_before_they_had_an_index_are_read(store):
    """Such stores exist; a part may also have been written by something else than write_part."""
    rows = [row(0, [0, 7, 255]), row(1, [256, 299]), row(5, [512])]
    put(store, "new", *rows)
    before = contents(store)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    storage.write_atomically(
        storage.join(store.location, "new.parquet"), lambda stream: pq.write_table(table, stream, row_group_size=1)
    )
    assert contents(store) == before == expected({0: [0, 7, 255], 1: [256, 299], 5: [512]})


def test_the_index_of_a_merged_part_is_its_own(store):
    put(store, "a", row(0, [0]), row(1, [256]))
    put(store, "b", row(2, [0]))
    before = contents(store)
    compact_parts(store, ["a.parquet", "b.parquet"])
    (name,) = storage.list_files(store.location)
    with storage.open_input(storage.join(store.location, name)) as stream, pq.ParquetFile(stream) as file:
        stored = file.metadata.metadata[store_module.INDEX_KEY]
    rows = np.frombuffer(base64.b64decode(stored), dtype=store_module.INDEX_DTYPE)
    assert rows["episode_index"].tolist() == [0, 0, 1]
    assert rows["start"].tolist() == [0, 256, 0]
    assert contents(store) == before
    assert index_of(store).row.tolist() == [0, 1, 2]


def test_other_number_types(tmp_path):
    store = FeatureStore(str(tmp_path), 3, "float16")
    half = row(0, [3, 4]) | {"features": feature(0, np.array([3, 4])).astype(np.float16).tobytes()}
    put(store, "a", half)
    values, present = read_chunk(store, index_of(store), 0)
    assert values.dtype == np.float16
    assert values[present].tolist() == [[0, 3, 1.5], [0, 4, 2]]


frame_sets = st.dictionaries(st.integers(0, 5), st.sets(st.integers(0, 255), min_size=1, max_size=10), max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(frame_sets, max_size=4))
def test_runs_add_up_frame_by_frame(tmp_path, runs):
    """However many runs wrote whatever, each frame is there once, and the set difference by frame is exact."""
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    store = FeatureStore(str(tmp_path / "s"), 3, "float32")
    total: dict[int, set[int]] = {}
    for number, run in enumerate(runs):
        within = {
            c: {int(CHUNKS.start[c]) + f for f in fs if CHUNKS.start[c] + f < CHUNKS.stop[c]} for c, fs in run.items()
        }
        rows = [row(chunk, sorted(frames)) for chunk, frames in within.items() if frames]
        if rows:
            put(store, f"run-{number}", *rows)
        for chunk, frames in within.items():
            total.setdefault(chunk, set()).update(frames)
    assert contents(store) == expected({chunk: sorted(frames) for chunk, frames in total.items() if frames})


def test_a_denser_stride_encodes_only_what_is_missing(store):
    """Stride 10, then 5: the plan minus what is there is exactly the difference, and afterwards all is there."""
    window = Window(frame_gap=10)
    plans = {s: bitmaps_by_length(LENGTHS, lambda length, s=s: needed_frames(length, s, window)) for s in (10, 5)}
    for stride in (10, 5):
        missing = plans[stride] & ~held_frames(index_of(store), len(CHUNKS))
        frames = {
            c: frames_of(missing[c], int(CHUNKS.start[c])).tolist() for c in range(len(CHUNKS)) if missing[c].any()
        }
        if stride == 5:
            before = [set(frames_of(b, int(s))) for b, s in zip(plans[10], CHUNKS.start, strict=True)]
            wanted = [set(frames_of(b, int(s))) for b, s in zip(plans[5], CHUNKS.start, strict=True)]
            assert {c: set(f) for c, f in frames.items()} == {
                c: want - have for c, (want, have) in enumerate(zip(wanted, before, strict=True)) if want - have
            }
        put(store, f"stride-{stride}", *[row(chunk, each) for chunk, each in frames.items()])
    held = held_frames(index_of(store), len(CHUNKS))
    assert np.array_equal(held, plans[5] | plans[10])
    assert not (plans[5] & ~held).any()


# -------------------------------------------------------------------------------------------------- what counts, when


def test_rows_of_another_source_or_layout_count_as_absent(store):
    put(store, "old", row(0, [0, 1]), row(1, [256]), row(2, [0, 1]), row(3, [5]))
    changed = np.array([101, 999, 101])
    assert set(contents(store, source=changed)) == {0, 1, 3}
    assert set(contents(store, layout=np.array([11, 12, 999]))) == {0, 1, 2}
    put(store, "new", row(2, [3], source=changed))
    assert contents(store, source=changed) == expected({0: [0, 1], 1: [256], 2: [3], 3: [5]})
    assert contents(store) == expected({0: [0, 1], 1: [256], 2: [0, 1], 3: [5]})


def test_a_gone_source_still_counts(store):
    put(store, "a", row(0, [0, 1]), row(3, [5]))
    gone = np.array([store_module.NO_SOURCE, 102, 101])
    assert contents(store, source=gone) == expected({0: [0, 1], 3: [5]})
    assert set(contents(store, source=gone, layout=np.array([9, 12, 13]))) == {3}


def test_rows_of_other_episodes_and_of_another_grid_are_ignored(store):
    strange = row(0, [0]) | {"start": 128}
    put(store, "a", row(0, [0, 1]), row(0, [3], episode=77), row(4, [256], episode=2), strange)
    assert contents(store) == expected({0: [0, 1]})
    some = Chunks(CHUNKS.row[2:3], CHUNKS.start[2:3], CHUNKS.stop[2:3])
    assert held_frames(index_of(store, chunks=some), 1).any() == np.False_


def test_a_plan_of_some_episodes_only(store):
    put(store, "a", row(0, [0]), row(2, [1, 2]), row(4, [300]))
    some = plan_chunks(np.array([1, 2]), LENGTHS[1:])
    index = index_of(store, chunks=some)
    assert index.chunk.tolist() == [0, 2]
    values, present = read_chunk(store, index, 2)
    assert np.flatnonzero(present).tolist() == [300 - 256]
    assert values[300 - 256].tolist() == [5, 300, 150]


def test_what_a_killed_writer_left_is_not_read(tmp_path):
    store = FeatureStore(str(tmp_path), 3, "float32")
    put(store, "a", row(0, [0]))
    (tmp_path / ".tmp-1-ab-b.parquet").write_bytes(b"PAR1 half a part")
    assert contents(store) == expected({0: [0]})


# --------------------------------------------------------------------------------------------------------- compaction


def fill_with_small_parts(store: FeatureStore, number: int = store_module.NUM_SMALL_PARTS) -> None:
    for part in range(number):
        chunk = part % len(CHUNKS)
        span = int(CHUNKS.stop[chunk] - CHUNKS.start[chunk])
        put(
            store, f"part-{part:03d}", row(chunk, [int(CHUNKS.start[chunk]) + (7 * part + k) % span for k in (0, 1, 2)])
        )


def test_few_parts_are_left_alone(store):
    fill_with_small_parts(store, store_module.NUM_SMALL_PARTS - 1)
    assert plan_compaction(store) == []


def test_compaction_changes_no_content(store):
    fill_with_small_parts(store)
    before = contents(store)
    (group,) = plan_compaction(store)
    assert group == [f"part-{part:03d}.parquet" for part in range(store_module.NUM_SMALL_PARTS)]
    compact_parts(store, group)
    (name,) = storage.list_files(store.location)
    assert name.startswith("merged-")
    assert contents(store) == before
    assert plan_compaction(store) == []


def test_temporaries_are_not_merged(tmp_path):
    store = FeatureStore(str(tmp_path), 3, "float32")
    fill_with_small_parts(store)
    (tmp_path / ".tmp-1-ab-part.parquet").write_bytes(b"PAR1 half a part")
    assert all(not name.startswith(".tmp") for group in plan_compaction(store) for name in group)


def test_groups_are_cut_by_size(store, monkeypatch):
    fill_with_small_parts(store)
    fs, root = storage.open_filesystem(store.location)
    size = max(info["size"] for info in fs.ls(root, detail=True))
    monkeypatch.setattr(store_module, "MERGED_PART_BYTES", 10 * size)
    before = contents(store)
    groups = plan_compaction(store)
    assert all(2 <= len(group) <= 11 for group in groups)
    assert sorted(name for group in groups for name in group) == sorted(storage.list_files(store.location))
    for group in groups:
        compact_parts(store, group)
    assert len(storage.list_files(store.location)) == len(groups)
    assert contents(store) == before
    monkeypatch.setattr(store_module, "SMALL_PART_BYTES", 1)
    assert plan_compaction(store) == []


@pytest.mark.parametrize("num_removed", [0, 5, 63])
def test_a_crash_in_the_middle_of_a_merge_loses_and_invents_nothing(tmp_path, monkeypatch, num_removed):
    """The merged part is written, some of the old ones are removed, and the process dies."""
    store = FeatureStore(str(tmp_path), 3, "float32")
    fill_with_small_parts(store)
    before = contents(store)
    (group,) = plan_compaction(store)
    removed: list[str] = []
    remove = LocalRemoval(removed, num_removed)
    monkeypatch.setattr(type(storage.open_filesystem(store.location)[0]), "rm_file", remove)
    with pytest.raises(KeyboardInterrupt):
        compact_parts(store, group)
    monkeypatch.undo()
    assert len(removed) == num_removed
    assert len(storage.list_files(store.location)) == 65 - num_removed
    assert contents(store) == before
    for again in plan_compaction(store):
        compact_parts(store, again)
        assert contents(store) == before


class LocalRemoval:
    """Removes so many files, then dies."""

    def __init__(self, removed: list[str], limit: int):
        self.removed, self.limit = removed, limit

    def __call__(self, path: str) -> None:
        if len(self.removed) == self.limit:
            raise KeyboardInterrupt
        Path(path).unlink()
        self.removed.append(path)


# ------------------------------------------------------------------------------------- what features are made from


def fingerprints(root: Path, camera: str = CAMERA) -> tuple[list[int], list[int]]:
    layout, source = fingerprint_sources(open_dataset(str(root)), camera)
    assert layout.dtype == source.dtype == np.int64
    assert store_module.NO_SOURCE not in layout.tolist()
    return layout.tolist(), source.tolist()


def differing(before: list[int], after: list[int]) -> list[int]:
    return [episode for episode, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_an_annotation_run_invalidates_nothing(tmp_path, version):
    root = write_dataset(tmp_path / "d", version, [5, 4, 6, 3])
    before = fingerprints(root)
    if version == "v3.0":
        for path in (root / "meta/episodes").rglob("*.parquet"):
            table = pq.read_table(path)
            names = pa.array([["a", "b"]] * table.num_rows)
            pq.write_table(table.append_column("sparse_subtask_names", names), path)
            os.utime(path, (1, 1))
    else:
        path = root / "meta/episodes.jsonl"
        path.write_text(path.read_text().replace("}", ', "sparse_subtask_names": ["a", "b"]}'))
    (root / "meta/temporal_proportions_sparse.json").write_text('{"a": 0.5, "b": 0.5}')
    assert fingerprints(root) == before


def test_a_recorded_anew_video_changes_only_its_own_episodes(tmp_path):
    root = write_dataset(tmp_path / "d", lengths=[5, 4, 6, 3, 7], episodes_per_video=2)
    layout, source = fingerprints(root)
    assert len(set(layout)) == 5
    assert [len({source[0], source[1]}), len({source[2], source[3]}), len(set(source))] == [1, 1, 3]
    write_video(root / f"videos/{CAMERA}/chunk-000/file-001.mp4", range(100, 109))
    after = fingerprints(root)
    assert after[0] == layout
    assert differing(source, after[1]) == [2, 3]


def test_a_gone_video_has_no_source_and_keeps_its_layout(tmp_path):
    root = write_dataset(tmp_path / "d", "v2.1", [5, 4, 6])
    layout, source = fingerprints(root)
    (root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").unlink()
    assert fingerprints(root) == (layout, [source[0], store_module.NO_SOURCE, source[2]])


def change(dataset: Dataset, **fields: object) -> list[int]:
    before, _ = fingerprint_sources(dataset, CAMERA)
    after, _ = fingerprint_sources(dataclasses.replace(dataset, **fields), CAMERA)  # type: ignore[arg-type]
    return differing(before.tolist(), after.tolist())


def test_layout_covers_all_that_says_which_pictures_an_episode_has(tmp_path):
    dataset = open_dataset(str(write_dataset(tmp_path / "d", lengths=[5, 4, 6], episodes_per_video=3)))
    files = dataset.videos[CAMERA]
    assert change(dataset) == []
    assert change(dataset, fps=60.0) == [0, 1, 2]
    assert change(dataset, length=np.array([5, 4, 7])) == [2]
    assert change(dataset, episode_index=np.array([0, 3, 2])) == [1]
    moved = dataclasses.replace(files, from_timestamp=files.from_timestamp + np.array([0, 0, 0.01]))
    assert change(dataset, videos={CAMERA: moved}) == [2]
    assert change(dataset, videos={CAMERA: dataclasses.replace(files, paths=("videos/other.mp4",))}) == [0, 1, 2]
    assert change(dataset, tasks=((),) * 3, name="x", root="/elsewhere") == []


def test_image_datasets_are_fingerprinted_by_their_data_files(tmp_path):
    root = write_dataset(tmp_path / "d", lengths=[3, 2, 4], image_dataset=True, episodes_per_data_file=2)
    _, source = fingerprints(root)
    os.utime(root / "data/chunk-000/file-001.parquet", (5, 5))
    assert differing(source, fingerprints(root)[1]) == [2]


# ----------------------------------------------------------------------------------------------- where the store lies


@pytest.fixture
def user_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SARM_RAY_CACHE", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


def test_beside_the_dataset(tmp_path, user_cache):
    dataset = open_dataset(str(write_dataset(tmp_path / "home/d", "v2.1", [2])))
    store = open_store(dataset, KEY, None)
    assert store == FeatureStore(f"{tmp_path}/home/d.sarm_features/{KEY.folder}", 3, "float32")
    assert not user_cache.exists()


@pytest.mark.parametrize("locked", ["home", "home/d"])
def test_not_beside_a_dataset_in_a_folder_without_write_bit_even_as_root(tmp_path, user_cache, locked):
    root = write_dataset(tmp_path / "home/d", "v2.1", [2])
    (tmp_path / locked).chmod(0o555)
    try:
        store = open_store(open_dataset(str(root)), KEY, None)
        assert Path(store.location).is_relative_to(user_cache / "features")
        put(store, "a", row(0, [0]))
        describe_store(store, KEY)
        assert contents(store) == expected({0: [0]})
        assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["d"]
    finally:
        (tmp_path / locked).chmod(0o755)


def test_hub_datasets_and_remote_ones_go_to_the_users_cache(tmp_path, user_cache):
    dataset = open_dataset(str(write_dataset(tmp_path / "home/d", "v2.1", [2])))
    hub = dataclasses.replace(dataset, name="someone/toy", repo_id="someone/toy", revision="main")
    remote = dataclasses.replace(dataset, root="memory://bucket/d")
    places = [Path(open_store(each, KEY, None).location) for each in (hub, remote)]
    assert all(place.is_relative_to(user_cache / "features") for place in places)
    assert len(set(places)) == 2
    # another commit shares the store: rows know the content of the file they were made from
    assert open_store(dataclasses.replace(hub, revision="v2"), KEY, None).location == str(places[0])
    assert places[0].relative_to(user_cache / "features").parts[0].startswith("toy-")


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_a_given_cache_is_used_for_every_dataset(tmp_path, user_cache, scheme):
    cache = f"{scheme}{tmp_path}/shared"
    dataset = open_dataset(str(write_dataset(tmp_path / "home/d", "v2.1", [2])))
    twin = dataclasses.replace(dataset, root=str(tmp_path / "elsewhere/d"))
    stores = [open_store(each, KEY, cache) for each in (dataset, twin)]
    assert stores[0].location != stores[1].location
    for store in stores:
        assert store.location.startswith(f"{cache}/d-")
        assert store.location.endswith(KEY.folder)
    put(stores[0], "a", row(0, [0]))
    describe_store(stores[0], KEY)
    assert contents(stores[0]) == expected({0: [0]})
    assert contents(stores[1]) == {}
    assert sorted(storage.list_files(stores[0].location)) == ["a.parquet", "key.json"]
    assert not Path(f"{dataset.root}.sarm_features").exists()
    assert not user_cache.exists()


def test_a_relative_cache_is_made_absolute(tmp_path, monkeypatch):
    dataset = open_dataset(str(write_dataset(tmp_path / "home/d", "v2.1", [2])))
    monkeypatch.chdir(tmp_path)
    assert open_store(dataset, KEY, "cache").location.startswith(f"{tmp_path}/cache/d-")


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("camera", "observation.images.wrist"),
        ("encoder", "openai/clip-vit-base-patch32"),
        ("weights", "ffff"),
        ("image_size", 256),
        ("feature_dim", 4),
        ("precision", "bf16"),
        ("dtype", "float16"),
        ("preprocessing", 99),
    ],
)
def test_each_field_of_the_key_has_its_own_folder(field, other):
    assert dataclasses.replace(KEY, **{field: other}).folder != KEY.folder
    assert dataclasses.replace(KEY).folder == KEY.folder


def test_folders_are_readable_and_harmless():
    assert KEY.folder.startswith("observation.images.base/efficientnet-lite0-fp32-float32-")
    for camera, encoder in (("../../x", "../../y"), ("a b/c", "/abs/model/"), ("..", ".")):
        parts = dataclasses.replace(KEY, camera=camera, encoder=encoder).folder.split("/")
        assert len(parts) == 2
        assert not {"", ".", ".."} & set(parts)
    same_slug = dataclasses.replace(KEY, camera="left/top"), dataclasses.replace(KEY, camera="right/top")
    assert same_slug[0].folder != same_slug[1].folder


def test_the_key_lies_beside_the_features_for_people(store):
    describe_store(store, KEY)
    describe_store(store, dataclasses.replace(KEY, weights="later"))
    text = storage.read_bytes(storage.join(store.location, "key.json")).decode()
    assert '"encoder": "efficientnet-lite0"' in text
    assert '"weights": "0a1b"' in text
