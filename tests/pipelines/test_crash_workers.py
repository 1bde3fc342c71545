"""Workers that die: their chunks are tried again by themselves, a bounded number of times, then given up by name.

The faults are injected into the real chains, on a real Ray: real worker processes end themselves.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

import sarm_ray.pipelines.ingest as ingest
import sarm_ray.pipelines.score_chunks as score_chunks
import sarm_ray.pipelines.score_pictures as score_pictures
from sarm_ray.core.windows import Window, window_slots
from sarm_ray.data import progress_io
from tests.pipelines.crashes import (
    CHUNKS,
    Undisturbed,
    assert_tidy,
    busy_workers,
    command_here,
    config_in,
    encoded_in,
    nan_frames,
    take_up,
    temporaries_below,
    wait_until,
    with_features,
)
from tests.pipelines.runs import BASE, assert_same_values, files_below, needs_parity, read_progress, score_one
from tests.sampling import others_slow

pytestmark = needs_parity

GAVE_UP = "its worker process died each time (a crash inside a library, or the out-of-memory killer)"
AGAIN = r"note: a worker process died with \d chunks?; tried again by itself, {} of 3"
BUG = "this is a bug in sarm_ray; finished chunks are kept\n"


def once(folder: Path) -> bool:
    """True for one caller, whichever process it is."""
    try:
        (folder / "fault").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def crash_of_decoder(frames: Callable[[str, int], bool], end: Callable[[], object]):
    """decode_job, whose decoder ends the process at chunks that `frames` picks by file and first frame."""

    def decode_job(jobs: pa.Table, stop_marker: str) -> Iterator[pa.Table]:
        import sarm_ray.pipelines.ingest as real

        read_frames = real.read_frames

        def crashing(location, requests, *arguments):
            results = read_frames(location, requests, *arguments)
            for request in requests:
                if frames(location, int(request.frames[0])):
                    end()
                yield next(results)

        real.read_frames = crashing
        try:
            yield from real.decode_job(jobs, stop_marker)
        finally:
            real.read_frames = read_frames

    return decode_job


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def failed_rows(folder: Path) -> list[tuple]:
    rows = pq.read_table(folder / "out.parquet.run/failed.parquet").to_pylist()
    return [tuple(row.values()) for row in rows]


def assert_repeated(said: str, *rounds: int) -> None:
    assert re.findall(r"tried again by itself, (\d) of 3", said) == [str(number) for number in rounds]


def assert_healed(result: Result, folder: Path, undisturbed: Undisturbed) -> None:
    """One process died, its chunks were tried again, and nothing shows of it."""
    assert result.exit_code == 0, result.stderr
    assert_repeated(result.stderr, 2)
    (folder / "fault").unlink()
    assert_tidy(folder)
    assert_same_values(folder / "out.parquet", undisturbed.output)


def test_an_encoder_that_dies_once(undisturbed, tmp_path, monkeypatch):
    class FrameEncoder(ingest.FrameEncoder):
        def __call__(self, decoded: pa.Table) -> pa.Table:
            if once(tmp_path):
                os._exit(1)
            return super().__call__(decoded)

    monkeypatch.setattr(ingest, "FrameEncoder", FrameEncoder)
    result = command_here(tmp_path)
    assert result.exit_code == 0, result.stderr
    assert_repeated(result.stderr, 2)
    assert "Traceback" not in result.stderr
    (tmp_path / "fault").unlink()
    assert_tidy(tmp_path)
    assert_same_values(tmp_path / "out.parquet", undisturbed.output)


@pytest.mark.slow
def test_a_scorer_that_dies_once(undisturbed, tmp_path, monkeypatch):
    class ChunkScorer(score_chunks.ChunkScorer):
        def score_chunk(self, dataset: int, chunk: int, frames: bytes) -> dict:
            if once(tmp_path):
                os._exit(1)
            return super().score_chunk(dataset, chunk, frames)

    monkeypatch.setattr(score_chunks, "ChunkScorer", ChunkScorer)
    with_features(tmp_path, undisturbed)
    result = command_here(tmp_path)
    assert_healed(result, tmp_path, undisturbed)


@pytest.mark.slow
def test_a_writer_that_dies_before_it_reports(undisturbed, tmp_path, monkeypatch):
    """The part is there and nobody knows: it is written again, which readers take for what it is."""
    commit = progress_io.commit_scores

    def commit_scores(scored: pa.Table, folders: list[str], heads: tuple[str, ...]) -> Iterator[pa.Table]:
        for table in commit(scored, folders, heads):
            if once(tmp_path):
                os._exit(1)
            yield table

    monkeypatch.setattr(progress_io, "commit_scores", commit_scores)
    with_features(tmp_path, undisturbed)
    result = command_here(tmp_path)
    assert_healed(result, tmp_path, undisturbed)


def test_a_decoder_that_segfaults_on_one_file(undisturbed, tmp_path, monkeypatch):
    decode_job = crash_of_decoder(lambda location, _: location.endswith("episode_000001.mp4"), segfault)
    monkeypatch.setattr(ingest, "decode_job", decode_job)
    result = command_here(tmp_path, "--num-visualizations", "0")
    assert result.exit_code == 1, result.stderr
    assert_repeated(result.stderr, 2, 3)
    assert "2 chunks failed" in result.stdout
    assert f"  failed: episode 1, frames 0 to 255: {GAVE_UP}\n" in result.stdout
    assert failed_rows(tmp_path) == [
        (1, BASE, 0, 256, "WorkerDied", GAVE_UP, 3),
        (1, BASE, 256, 330, "WorkerDied", GAVE_UP, 3),
    ]
    assert encoded_in(tmp_path) == {chunk: count for chunk, count in CHUNKS.items() if chunk[0] != 1}
    assert_same_but_for(tmp_path, undisturbed, np.arange(330))
    assert temporaries_below(tmp_path) == []


@pytest.mark.slow
def test_a_chunk_that_segfaults_costs_the_windows_that_need_it_until_it_is_mended(undisturbed, tmp_path, monkeypatch):
    def second_chunk_of_1(location: str, frame: int) -> bool:
        return location.endswith("episode_000001.mp4") and frame == 256

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "decode_job", crash_of_decoder(second_chunk_of_1, segfault))
        result = command_here(tmp_path, "--allow-failures", "1")
    assert result.exit_code == 0, result.stderr
    assert failed_rows(tmp_path) == [(1, BASE, 256, 330, "WorkerDied", GAVE_UP, 3)]
    assert encoded_in(tmp_path) == {chunk: count for chunk, count in CHUNKS.items() if chunk != (1, 256)}
    slots = window_slots(np.arange(330), 330, Window(8, 30))
    assert_same_but_for(tmp_path, undisturbed, np.flatnonzero((slots >= 256).any(axis=1)))
    report = score_one(config_in(tmp_path, overwrite=True))
    assert (report.num_cached, report.num_decoded, report.failures) == (916, 74, [])
    assert_tidy(tmp_path)
    assert_same_values(tmp_path / "out.parquet", undisturbed.output)


def test_a_scorer_that_always_dies_of_one_chunk(undisturbed, tmp_path, monkeypatch):
    class ChunkScorer(score_chunks.ChunkScorer):
        def score_chunk(self, dataset: int, chunk: int, frames: bytes) -> dict:
            if chunk == 3:
                os._exit(1)
            return super().score_chunk(dataset, chunk, frames)

    monkeypatch.setattr(score_chunks, "ChunkScorer", ChunkScorer)
    with_features(tmp_path, undisturbed)
    result = command_here(tmp_path)
    assert result.exit_code == 1, result.stderr
    assert_repeated(result.stderr, 2, 3)
    assert failed_rows(tmp_path) == [(1, BASE, 256, 330, "WorkerDied", GAVE_UP, 3)]
    assert_same_but_for(tmp_path, undisturbed, np.arange(256, 330))
    assert_tidy(tmp_path, "failed.parquet")


@pytest.mark.parametrize("stage", others_slow(["decode", "score"], ["score"]))
def test_a_bug_of_ours_in_a_worker_ends_the_run(undisturbed, tmp_path, monkeypatch, stage):
    """An exception is no dead process: it is not tried again, and not taken for a broken video."""

    def fail() -> None:
        raise AssertionError("a bug of ours")

    class ChunkScorer(score_chunks.ChunkScorer):
        def score_chunk(self, dataset: int, chunk: int, frames: bytes) -> dict:
            return fail()

    with monkeypatch.context() as patch:
        if stage == "decode":
            one = crash_of_decoder(lambda location, _: location.endswith("episode_000001.mp4"), fail)
            patch.setattr(ingest, "decode_job", one)
        else:
            with_features(tmp_path, undisturbed)
            patch.setattr(score_chunks, "ChunkScorer", ChunkScorer)
        result = command_here(tmp_path)
    assert result.exit_code == 70
    assert result.stderr.endswith(BUG)
    assert "AssertionError: a bug of ours" in result.stderr
    assert_repeated(result.stderr)
    assert not (tmp_path / "out.parquet").exists()
    assert not (tmp_path / "out.parquet.run/lease.json").exists()
    wait_until(
        lambda: not busy_workers(own=True), patience_s=30
    )  # though the result holds the exception and its traceback
    take_up(tmp_path, undisturbed)


def test_a_picture_whose_frames_kill_the_process_is_drawn_without_them(undisturbed, tmp_path, monkeypatch):
    draw = score_pictures._draw_episode

    def draw_episode(dataset, camera, row, predictions, folder, thumbnails):
        if row == 1 and thumbnails:
            segfault()
        return draw(dataset, camera, row, predictions, folder, thumbnails)

    monkeypatch.setattr(score_pictures, "_draw_episode", draw_episode)
    with_features(tmp_path, undisturbed)
    result = command_here(tmp_path, "--num-visualizations", "2")
    assert result.exit_code == 0, result.stderr
    pictures = [name for name in files_below(tmp_path / "out.parquet.run") if name.startswith("visualizations/")]
    assert len(pictures) == 4
    assert_same_values(tmp_path / "out.parquet", undisturbed.output)


def assert_same_but_for(folder: Path, undisturbed, frames: np.ndarray) -> None:
    """All values are those of the undisturbed run, but for some frames of episode 1, which have none."""
    ours, theirs = read_progress(folder / "out.parquet"), read_progress(undisturbed.output)
    assert list(ours) == list(theirs)
    lost = np.zeros(len(theirs["index"]), dtype=bool)
    lost[300 + frames] = True
    for name in theirs:
        if name.startswith("progress_"):
            assert np.isnan(ours[name][lost]).all()
            np.testing.assert_array_equal(ours[name][~lost], theirs[name][~lost], err_msg=name)
        else:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert nan_frames(folder / "out.parquet", 1).tolist() == frames.tolist()
