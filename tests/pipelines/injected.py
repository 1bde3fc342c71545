"""The console command with a fault: `python -m tests.pipelines.injected FAULT score ...`.

A fault kills the real driver with SIGKILL, by its own hand or a worker's, at one point; or it holds real workers in the
middle of their chunks, which they note as `begun-<what>` beside the output, until the run is asked to stop or a file
`go` is there.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

import sarm_ray.pipelines.ingest as ingest
import sarm_ray.pipelines.score as score
import sarm_ray.pipelines.score_chunks as score_chunks
import sarm_ray.pipelines.score_output as score_output
from sarm_ray.cli import main
from sarm_ray.data import progress_io, progress_merge
from sarm_ray.data.lease import Lease
from sarm_ray.pipelines.score_plan import ScorePlan


def die(driver: int) -> None:
    """SIGKILL the driver; a worker goes with it."""
    os.kill(driver, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def crash_before(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True, driver: int | None = None) -> None:
    """Replace a function by one that dies when its arguments say so."""
    original, driver = getattr(owner, name), driver or os.getpid()

    def dying(*args, **options):
        if when(*args):
            die(driver)
        return original(*args, **options)

    setattr(owner, name, dying)


def lease_written() -> None:
    crash_before(os, "link")


def feature_written(driver: int) -> None:
    """In a worker: when two parts are in the store, between the third one's temporary file and its rename."""
    crash_before(Path, "replace", lambda _, target: len(list(target.parent.glob("[!.]*.parquet"))) >= 2, driver)


def features_complete() -> None:
    crash_before(score, "score_missing")


def parts_complete() -> None:
    crash_before(score, "_finish")


def merging(driver: int) -> None:
    """In the worker that merges: two of three episodes are in the temporary file."""
    score_output.merge_parts = partial(progress_merge.merge_parts, num_rows=1)  # an episode at a time
    crash_before(progress_merge, "_frame_rows", lambda _scored, _place, rows, *_: rows.tolist() == [2], driver)


def output_written(driver: int) -> None:
    """In the worker that merges: between the temporary file and its rename."""
    crash_before(Path, "replace", lambda _, target: target.name == "out.parquet", driver)


def output_renamed() -> None:
    crash_before(score, "measure_run")


def parts_half_removed() -> None:
    """The summary is there; removing a folder takes one file after the other."""

    def remove_one(folder: str, prefix: str) -> bool:
        if prefix == progress_io.PARTS_PREFIX:
            next(Path(folder).glob(f"{prefix}*/*.parquet")).unlink()
        return prefix == progress_io.PARTS_PREFIX

    crash_before(score.progress_io, "remove_files", remove_one)


def in_feature_workers(fault: Callable[[], None]) -> None:
    def commit_features(encoded: pa.Table, stores: list) -> Iterator[pa.Table]:
        from sarm_ray.data.features import commit_features as original

        fault()
        yield from original(encoded, stores)

    ingest.commit_features = commit_features


def in_score_workers(fault: Callable[[], None]) -> None:
    def commit_scores(scored: pa.Table, folders: list[str], heads: tuple[str, ...]) -> Iterator[pa.Table]:
        from sarm_ray.data.progress_io import commit_scores as original

        fault()
        yield from original(scored, folders, heads)

    progress_io.commit_scores = commit_scores


def in_merging_worker(fault: Callable[[], None]) -> None:
    def write_output(plan: ScorePlan, lease: Lease, failures: list[dict]) -> tuple[int, dict[str, int]]:
        from sarm_ray.pipelines.score_output import write_output as original

        fault()
        return original(plan, lease, failures)

    score.write_output = write_output


def wait(marker: str, what: str, until_stop: bool) -> None:
    """In a worker, in the middle of a chunk: `marker` is where the run leaves word that it is to stop."""
    stop = Path(marker)
    folder = stop.parents[1]
    (folder / f"begun-{what}").touch()
    while not ((until_stop and stop.exists()) or (folder / "go").exists()):
        time.sleep(0.01)


def hold_encoding(until_stop: bool) -> None:
    """Episode 0's first chunk is encoded, its second one held in the encoder; other episodes are held before decoding.

    The second chunk is decoded when the first one is in the store: an actor that had both might begin with the second.
    """
    decode, encoder = ingest.decode_job, ingest.FrameEncoder

    def decode_job(jobs: pa.Table, stop_marker: str) -> Iterator[pa.Table]:
        chunks = decode(jobs, stop_marker)
        if jobs["episode_index"].to_pylist()[0] == [0, 0]:
            yield next(chunks)
            while not list((Path(stop_marker).parents[1] / "features").rglob("[!.]*.parquet")):
                time.sleep(0.01)
        else:
            wait(stop_marker, "job", until_stop)
        yield from chunks

    class FrameEncoder(encoder):
        def __init__(self, stop_marker: str, **options):
            super().__init__(stop_marker=stop_marker, **options)
            encode = self.encode
            self.encode = lambda images: encode(images) if len(images) == 256 else self.encode_held(encode, images)

        def encode_held(self, encode, images):
            wait(self.stop_marker, "chunk", until_stop)
            return encode(images)

    ingest.decode_job, ingest.FrameEncoder = decode_job, FrameEncoder


def hold_scoring(until_stop: bool) -> None:
    """The chunk that a worker begins first is scored, all others are held. Ray's actors take theirs in any order."""
    scorer = score_chunks.ChunkScorer

    class ChunkScorer(scorer):
        def score_chunk(self, dataset: int, chunk: int, frames: bytes) -> dict:
            folder = Path(self.job.stop_marker).parents[1]
            (folder / f"begun-{chunk}").touch()
            if not created(folder / "first"):
                wait(self.job.stop_marker, str(chunk), until_stop)
            return super().score_chunk(dataset, chunk, frames)

    score_chunks.ChunkScorer = ChunkScorer


def created(path: Path) -> bool:
    """True for one caller, whichever process it is."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


FAULTS: dict[str, Callable[[], None]] = {
    "lease written": lease_written,
    "feature part written": lambda: in_feature_workers(partial(feature_written, os.getpid())),
    "features complete": features_complete,
    "score part written": lambda: in_score_workers(partial(feature_written, os.getpid())),
    "parts complete": parts_complete,
    "merging": lambda: in_merging_worker(partial(merging, os.getpid())),
    "output written": lambda: in_merging_worker(partial(output_written, os.getpid())),
    "output renamed": output_renamed,
    "parts half removed": parts_half_removed,
    "hold encoding until stop": partial(hold_encoding, until_stop=True),
    "hold encoding until go": partial(hold_encoding, until_stop=False),
    "hold scoring until stop": partial(hold_scoring, until_stop=True),
}

if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    main(prog_name="sarm-ray")
