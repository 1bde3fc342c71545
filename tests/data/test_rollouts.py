"""The log of rollouts: what goes in comes out, from many processes at once, whole or not at all, and once."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarm_ray.core.rabc import progress_deltas
from sarm_ray.data import rollout_log, storage
from sarm_ray.data.rollout_log import (
    append_rollouts,
    best_records,
    is_rollout_log,
    merge_rollouts,
    read_rollouts,
    read_thumbnails,
)
from sarm_ray.data.rollouts import HeadCurve, Rollout, episode_number
from sarm_ray.errors import DatasetError, StoreError
from tests.rollouts import make_rollout

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOATS = st.floats(width=32, allow_infinity=False)


@st.composite
def curves(draw, size):
    column = st.lists(FLOATS, min_size=size, max_size=size).map(lambda values: np.array(values, dtype=np.float32))
    stages = st.lists(st.integers(-1, 2**31 - 1), min_size=size, max_size=size)
    return HeadCurve(
        tuple(draw(st.lists(TEXTS, max_size=3))), draw(column), np.array(draw(stages), dtype=np.int32), draw(column)
    )


@st.composite
def any_rollouts(draw):
    frames = sorted(draw(st.sets(st.integers(0, 10**6), max_size=5)))
    pictures = st.tuples(st.floats(0, 1e6), st.binary(max_size=8))
    times = st.lists(st.floats(0, 1e9), min_size=len(frames), max_size=len(frames))
    numbers = dict(zip(rollout_counts(), draw(st.lists(st.integers(0, 2**40), min_size=4, max_size=4)), strict=True))
    return Rollout(
        session=draw(TEXTS),
        started_s=draw(st.floats(0, 2.0**32, exclude_max=True)),
        task=draw(TEXTS),
        fps=draw(st.floats(1e-3, 1e6)),
        model=draw(TEXTS),
        encoder=draw(TEXTS),
        heads={head: draw(curves(len(frames))) for head in draw(st.sets(st.sampled_from(["sparse", "dense"])))},
        time_s=np.array(draw(times), dtype=np.float64),
        frame_index=np.array(frames, dtype=np.int64),
        ended=draw(st.sampled_from(["closed", "idle", "lost", "drained"])),
        outcome=draw(st.sampled_from([None, "success", "partial", "failure"])),
        thumbnails=tuple(draw(st.lists(pictures, max_size=3))),
        **numbers,
    )


def rollout_counts():
    return ("num_received", "num_scored", "num_dropped", "num_skipped")


def assert_same(one: Rollout, other: Rollout) -> None:
    """Every field, bit for bit, but for the file."""
    plain = [name for name in vars(one) if name not in ("heads", "time_s", "frame_index", "file")]
    assert {name: getattr(one, name) for name in plain} == {name: getattr(other, name) for name in plain}
    columns = [(one.time_s, other.time_s), (one.frame_index, other.frame_index)]
    assert one.heads.keys() == other.heads.keys()
    for head, curve in one.heads.items():
        own = other.heads[head]
        assert curve.stages == own.stages
        columns += [(curve.progress, own.progress), (curve.stage, own.stage), (curve.confidence, own.confidence)]
    for mine, theirs in columns:
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(mine, theirs)


def files_of(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@settings(max_examples=60)
@given(rollouts=st.lists(any_rollouts(), max_size=4, unique_by=lambda rollout: rollout.key))
def test_what_goes_in_comes_out(tmp_path_factory, rollouts):
    folder = str(tmp_path_factory.mktemp("log"))
    name = append_rollouts(folder, rollouts)
    assert (name is None) == (not rollouts)
    read = read_rollouts(folder)
    for one, other in zip(sorted(rollouts, key=lambda each: (each.started_s, each.session)), read, strict=True):
        assert_same(one, other)
        assert other.file == name
    assert [
        (place, pictures) for place, pictures in read_thumbnails(folder, read_rollouts(folder, thumbnails=False))
    ] == [
        (place, each.thumbnails)
        for place, each in sorted(enumerate(read), key=lambda pair: order_in(rollouts, pair[1]))
    ]


def order_in(rollouts, one) -> int:
    return [rollout.key for rollout in rollouts].index(one.key)


def test_half_a_letter_is_stored_as_a_mark(tmp_path):
    append_rollouts(str(tmp_path), [make_rollout("s", 1.0, task="a \ud800 b")])
    assert read_rollouts(str(tmp_path))[0].task == "a ? b"


def test_pandas_reads_the_folder(tmp_path):
    dense = make_rollout("robot-2", 1.7e9 + 60, outcome="failure", heads=("dense",), num_frames=7)
    append_rollouts(str(tmp_path), [make_rollout("robot-1", 1.7e9, outcome="success", num_frames=5)])
    append_rollouts(str(tmp_path), [dense, make_rollout("robot-3", 1.7e9 + 70, num_frames=0)])
    (tmp_path / "_report.html").write_text("<html>")
    frames = pd.read_parquet(tmp_path)
    assert len(frames) == 12
    expected = ["index", "episode_index", "frame_index", "time_s", "progress_sparse", "progress_dense", "stage_sparse"]
    assert list(frames.columns)[:7] == expected
    kinds = {"index": "int64", "episode_index": "int64", "frame_index": "int64", "progress_sparse": "float32"}
    assert {name: str(frames[name].dtype) for name in kinds} == kinds
    last = frames.groupby("episode_index").last()
    assert last["session"].tolist() == ["robot-1", "robot-2"]
    assert last["outcome"].tolist() == ["success", "failure"]
    np.testing.assert_array_equal(frames["progress_dense"].iloc[5:], dense.heads["dense"].progress)
    assert (frames["stage_dense"].iloc[:5] == -1).all()
    facts = pd.read_parquet(tmp_path / "_rollouts").set_index("episode_index")
    assert facts["session"].tolist() == ["robot-1", "robot-2", "robot-3"]
    assert facts.loc[frames["episode_index"], "num_rows"].tolist() == [5] * 5 + [7] * 7
    assert facts["final_dense"].iloc[1] == dense.heads["dense"].progress[-1]


def test_a_file_holds_the_deltas_that_weights_are_made_of(tmp_path):
    """`index` and `episode_index` name rollouts and their rows, not frames of a dataset."""
    rollout = make_rollout("robot", 1.7e9, num_frames=30)
    append_rollouts(str(tmp_path), [rollout])
    frames = pd.read_parquet(tmp_path)
    assert frames["index"].tolist() == list(range(30))
    assert set(frames["episode_index"]) == {episode_number("robot", 1.7e9)}
    deltas = progress_deltas(frames["progress_sparse"].to_numpy(), np.array([30]), 5)
    assert np.isfinite(deltas).all()


def test_numbers_of_rollouts_grow_with_their_start_and_fit():
    numbers = [episode_number("robot", started) for started in (0.0, 1.7e9, 1.7e9 + 0.001, 2.0**32 - 1)]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < 2**63
    many = {episode_number(f"robot-{number}", 1.7e9) for number in range(500)}
    assert len(many) == 500


def append_some(folder: str, process: int) -> list[str]:
    return [
        append_rollouts(folder, [make_rollout(f"robot-{process}-{number}", 1000.0 + number, num_frames=20)])
        for number in range(12)
    ]


def test_processes_append_at_once_while_others_read_and_merge(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_log, "MERGED_ROLLOUTS", 8)
    folder = str(tmp_path / "log")
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(append_some, folder, process) for process in range(4)]
        seen = 0
        while not all(each.done() for each in pending):
            found = read_rollouts(folder)
            assert len(found) >= seen
            seen = len(found)
            merge_rollouts(folder)
            time.sleep(0.05)
        names = [name for each in pending for name in each.result()]
    assert len(set(names)) == 48
    expected = {f"robot-{process}-{number}" for process in range(4) for number in range(12)}
    assert {rollout.session for rollout in read_rollouts(folder)} == expected


@pytest.mark.parametrize("crash", [1, 2], ids=["before the facts", "between facts and frames"])
def test_a_crash_leaves_nothing_that_anybody_reads(tmp_path, monkeypatch, crash):
    folder = str(tmp_path)
    append_rollouts(folder, [make_rollout("first", 1.0)])
    there, renamed = files_of(tmp_path), []
    replace_file = Path.replace

    def crash_then(self, target):
        renamed.append(target)
        if len(renamed) == crash:
            raise KeyboardInterrupt
        return replace_file(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash_then)
        with pytest.raises(KeyboardInterrupt):
            append_rollouts(folder, [make_rollout("second", 2.0)])
    assert [rollout.session for rollout in read_rollouts(folder)] == ["first"]
    assert len(pd.read_parquet(tmp_path)["session"].unique()) == 1
    assert not [name for name in files_of(tmp_path) if ".tmp" in name]
    merge_rollouts(folder)
    assert len(files_of(tmp_path)) == len(there) + crash - 1  # facts without frames are young: they may be on their way
    monkeypatch.setattr(rollout_log, "ORPHAN_S", -1.0)
    merge_rollouts(folder)
    assert files_of(tmp_path) == there


def test_a_killed_writer_leaves_a_file_that_nobody_reads_and_merging_removes(tmp_path):
    folder = str(tmp_path)
    append_rollouts(folder, [make_rollout("first", 1.0)])
    left = tmp_path / f".tmp-{storage._HOST}-999999999-abc-rollouts-x.parquet"
    left.write_bytes(b"PAR1 half of it")
    assert len(read_rollouts(folder)) == 1
    assert len(pd.read_parquet(tmp_path)) == 10
    merge_rollouts(folder)
    assert not left.exists()


def test_a_rollout_that_is_recorded_twice_counts_once(tmp_path):
    folder = str(tmp_path)
    lost = make_rollout("robot", 5.0, ended="lost", num_frames=30)
    whole = make_rollout("robot", 5.0, ended="closed", num_frames=20, outcome="success")
    later = make_rollout("robot", 65.0, ended="idle", num_frames=4)
    append_rollouts(folder, [lost])
    append_rollouts(folder, [whole, later])
    append_rollouts(folder, [replace(lost, ended="drained")])
    read = read_rollouts(folder)
    assert [(rollout.started_s, rollout.ended) for rollout in read] == [(5.0, "closed"), (65.0, "idle")]
    assert_same(read[0], whole)
    short, long = (make_rollout("robot", 5.0, ended="idle", num_frames=number) for number in (3, 4))
    none = make_rollout("robot", 5.0, ended="lost", num_frames=0)
    for records in ([none, short, long], [long, short, none], [short, long, none]):
        assert best_records(records) == [long]
    sparse = replace(long, time_s=np.array([0.0, long.time_s[-1]]), frame_index=np.array([0, 9]), heads={})
    assert best_records([sparse, long]) == best_records([long, sparse]) == [long]


def test_thumbnails_are_those_of_the_record_that_counts(tmp_path):
    folder, jpeg = str(tmp_path), b"\xff\xd8 of the whole"
    append_rollouts(folder, [make_rollout("robot", 5.0, ended="lost", thumbnails=((0.0, b"of the lost"),))])
    append_rollouts(folder, [make_rollout("robot", 5.0, thumbnails=((0.5, jpeg),)), make_rollout("other", 6.0)])
    read = read_rollouts(folder, thumbnails=False)
    assert [rollout.thumbnails for rollout in read] == [(), ()]
    assert dict(read_thumbnails(folder, read)) == {0: ((0.5, jpeg),), 1: ()}


def test_small_files_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_log, "MERGED_ROLLOUTS", 10)
    monkeypatch.setattr(rollout_log, "FEWEST_MERGED", 4)
    folder = str(tmp_path)
    for number in range(23):
        append_rollouts(folder, [make_rollout(f"robot-{number}", float(number), thumbnails=((0.0, b"x"),))])
    append_rollouts(folder, [make_rollout(f"more-{number}", 50.0 + number) for number in range(11)])
    before = read_rollouts(folder)
    assert merge_rollouts(folder) == 18
    after = read_rollouts(folder)
    for one, other in zip(before, after, strict=True):
        assert_same(one, other)
    assert len(files_of(tmp_path)) == 2 * 6  # 10, 10, 11, and three that wait for more
    assert merge_rollouts(folder) == 0
    assert dict(read_thumbnails(folder, before))[0] == ((0.0, b"x"),)  # from a file that was merged meanwhile


def test_merging_loses_nothing_wherever_it_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_log, "FEWEST_MERGED", 2)
    folder = str(tmp_path)
    for number in range(4):
        append_rollouts(folder, [make_rollout(f"robot-{number}", float(number))])
    before, steps = read_rollouts(folder), 0
    remove = storage.remove_file
    for last in range(8):

        def crash_after(location, last=last):
            nonlocal steps
            steps += 1
            if steps > last:
                raise KeyboardInterrupt
            remove(location)

        steps = 0
        monkeypatch.setattr(storage, "remove_file", crash_after)
        with pytest.raises(KeyboardInterrupt):
            merge_rollouts(folder)
        for one, other in zip(before, read_rollouts(folder), strict=True):
            assert_same(one, other)
        append_rollouts(folder, [before[0]])
    monkeypatch.setattr(storage, "remove_file", remove)
    merge_rollouts(folder)
    assert len(read_rollouts(folder)) == 4
    assert len([name for name in files_of(tmp_path) if not name.startswith("_")]) == 1


def test_any_store_will_do():
    folder = "memory://live/log"
    rollout = make_rollout("robot", 5.0, thumbnails=((0.5, b"jpeg"),))
    assert read_rollouts(folder) == []
    assert not is_rollout_log(folder)
    append_rollouts(folder, [rollout])
    assert_same(read_rollouts(folder)[0], rollout)
    assert is_rollout_log(folder)


def test_what_is_no_log_is_told_from_one(tmp_path):
    assert not is_rollout_log(str(tmp_path / "nowhere"))
    assert not is_rollout_log("lerobot/pusht")
    assert not is_rollout_log("hf://datasets/lerobot/pusht")
    append_rollouts(str(tmp_path / "log"), [make_rollout("robot", 5.0)])
    assert not is_rollout_log(str(tmp_path))
    assert is_rollout_log(str(tmp_path / "log"))


def test_a_broken_file_is_named(tmp_path):
    folder = str(tmp_path)
    name = append_rollouts(folder, [make_rollout("robot", 5.0)])
    whole = pq.read_table(tmp_path / name)
    pq.write_table(whole.slice(0, 4), tmp_path / name)
    with pytest.raises(DatasetError, match=rf"{name}: it has 4 frames, where its rollouts have 10"):
        read_rollouts(folder)
    pq.write_table(whole.drop_columns(["stage_dense"]), tmp_path / name)
    with pytest.raises(DatasetError, match=rf"{name}: no column 'stage_dense'; it was written by another version"):
        read_rollouts(folder)
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=rf"{name}: not a readable parquet file \("):
        read_rollouts(folder)
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "_rollouts" / name).unlink()
    with pytest.raises(DatasetError, match="a file of the log is gone"):
        read_rollouts(folder)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        append_rollouts(str(tmp_path / "file"), [make_rollout("robot", 5.0)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"time_s": np.zeros(3)}, "its columns are not of one length"),
        ({"frame_index": np.arange(10)[::-1]}, "frames that are not in order, or times that are no numbers"),
        ({"frame_index": np.arange(10) - 1}, "a frame before the first one"),
        ({"time_s": np.full(10, np.nan)}, "frames that are not in order, or times that are no numbers"),
        ({"ended": "gone"}, "ended 'gone' with outcome None"),
        ({"outcome": "so so"}, "ended 'closed' with outcome 'so so'"),
        ({"started_s": float("nan")}, "started at nan, 30.0 frames per second"),
        ({"started_s": 1.7e12}, "started at 1700000000000.0, 30.0 frames per second"),
        ({"fps": 0.0}, "started at 5.0, 0.0 frames per second"),
        ({"thumbnails": ((0.0, b""),) * 65}, "65 thumbnails, more than 64"),
    ],
)
def test_what_contradicts_itself_is_no_rollout(change, told):
    with pytest.raises(ValueError, match=f"session robot: {told}"):
        replace(make_rollout("robot", 5.0), **change)
    with pytest.raises(ValueError, match=r"heads \['middle'\] are not of"):
        replace(make_rollout("robot", 5.0, num_frames=0), heads={"middle": HeadCurve((), *(np.zeros(0),) * 3)})
