"""200 episodes of the demo's generator, told by an endpoint that knows them: the driver is killed half-way, an actor dies
once, the run is asked to stop. In the end the same is written as without, and no finished episode is asked about again.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.data.annotation_journal import read_journal
from sarm_ray.demo.dataset import FORMAT, PlannedEpisode, plan_demo
from sarm_ray.demo.lerobot_writer import Recording, write_lerobot
from sarm_ray.demo.motion import segments_of
from sarm_ray.pipelines.annotate import annotate
from tests.pipelines.annotation_oracle import MODEL, Oracle, Truth, oracle_of
from tests.pipelines.crashes import kill, wait_until
from tests.pipelines.runs import files_below

NUM_EPISODES = 200
KINDS = {"sparse": FORMAT.stages["sparse"], "dense": FORMAT.stages["dense"]}


def demonstrations() -> list[PlannedEpisode]:
    planned = [each for seed in range(5) for each in plan_demo(seed)["train"] if each.annotated]
    return planned[:NUM_EPISODES]


def blank(planned: PlannedEpisode) -> Recording:
    """An episode of the demo without its pictures, which the endpoint does not look at."""
    motion = planned.episode.motion
    pose = np.column_stack([motion.hand, motion.opening]).astype(np.float32)
    grey = np.full((FORMAT.size, FORMAT.size, 3), 128, dtype=np.uint8)
    return Recording(planned.task, pose, pose, lambda: iter([grey] * len(motion)), planned.episode.outcome, None)


def truth_of(planned: list[PlannedEpisode]) -> Truth:
    truth = {}
    for episode, each in enumerate(planned):
        motion = each.episode.motion
        for kind, names in (("sparse", motion.stages), ("dense", motion.subtasks)):
            segments = segments_of(names)
            ends = [*(segment.end for segment in segments[:-1]), len(motion)]
            truth[(kind, episode)] = [
                (segment.name, segment.start / FORMAT.fps, end / FORMAT.fps)
                for segment, end in zip(segments, ends, strict=True)
            ]
    return truth


@pytest.fixture(scope="module")
def planned() -> list[PlannedEpisode]:
    return demonstrations()


@pytest.fixture(scope="module")
def drawn(planned, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "tabletop"
    write_lerobot(root, FORMAT, [blank(each) for each in planned])
    return root


@pytest.fixture(scope="module")
def truth(planned) -> Truth:
    return truth_of(planned)


def config_of(dataset: Path, oracle: Oracle) -> AnnotateConfig:
    return AnnotateConfig(
        dataset=str(dataset),
        sparse_subtasks=list(KINDS["sparse"]),
        dense_subtasks=list(KINDS["dense"]),
        engine="openai",
        endpoint=oracle.url,
        model=MODEL,
        num_workers=2,
        concurrency=2,
        allow_repeats=True,
        num_visualizations=0,
    )


@contextlib.contextmanager
def started(dataset: Path, oracle: Oracle) -> Iterator[subprocess.Popen]:
    """The console command as a process of its own, on the session's Ray."""
    config = config_of(dataset, oracle)
    command = [
        sys.executable, "-m", "sarm_ray", "annotate", str(dataset), "--engine", "openai", "--endpoint", oracle.url,
        "--model", MODEL, "--num-workers", "2", "--concurrency", "2", "--allow-repeats", "--num-visualizations", "0",
        *(word for name in config.sparse for word in ("--sparse-subtasks", name)),
        *(word for name in config.dense for word in ("--dense-subtasks", name)),
    ]  # fmt: skip
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with (dataset.parent / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=env, start_new_session=True)
    try:
        yield process
    finally:
        kill(process)


def journalled(dataset: Path) -> set[tuple[str, int]]:
    root = dataset / "annotation.run/journal"
    return {(path.parent.name, int(path.stem.removeprefix("episode_"))) for path in root.glob("*/episode_*.json")}


def metadata_of(dataset: Path) -> dict[str, object]:
    files = {path.relative_to(dataset): path for path in sorted((dataset / "meta").rglob("*")) if path.is_file()}
    return {
        str(name): pq.read_table(path) if path.suffix == ".parquet" else path.read_bytes()
        for name, path in files.items()
    }


@pytest.fixture(scope="module")
def undisturbed(drawn, truth, tmp_path_factory) -> dict[str, object]:
    dataset = tmp_path_factory.mktemp("undisturbed") / "tabletop"
    shutil.copytree(drawn, dataset)
    with oracle_of(truth, KINDS, noise_s=0.3) as oracle:
        report = annotate(config_of(dataset, oracle), quiet=True)
        assert len(oracle.asked) == 2 * NUM_EPISODES
    assert (report.failures, report.num_annotated) == ([], {"sparse": NUM_EPISODES, "dense": NUM_EPISODES})
    assert report.num_asked == 2 * NUM_EPISODES
    return metadata_of(dataset)


@pytest.fixture
def dataset(drawn, tmp_path) -> Path:
    shutil.copytree(drawn, tmp_path / "tabletop")
    return tmp_path / "tabletop"


def askers() -> list[psutil.Process]:
    """The actors that ask, once they run."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith("ray::MapWork") and "EpisodeAsker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def assert_tidy(dataset: Path) -> None:
    assert files_below(dataset / "annotation.run") == [
        "annotations.html", "config.yaml", "journal.parquet", "segments.csv", "summary.json",
    ]  # fmt: skip


def test_the_driver_killed_half_way_and_an_actor_once(undisturbed, dataset, truth):
    with oracle_of(truth, KINDS, noise_s=0.3, delay_s=0.02) as oracle:
        with started(dataset, oracle) as process:
            wait_until(lambda: len(journalled(dataset)) >= NUM_EPISODES, process)
            kill(process)
        finished = journalled(dataset)
        assert NUM_EPISODES <= len(finished) < 2 * NUM_EPISODES
        assert "sparse_subtask_names" not in pq.read_schema(next((dataset / "meta/episodes").rglob("*.parquet"))).names
        oracle.asked.clear()
        with started(dataset, oracle) as process:
            wait_until(lambda: len(journalled(dataset)) >= len(finished) + 40 and askers(), process)
            victim = askers()[0]
            before = journalled(dataset)
            victim.kill()
            assert process.wait() == 0, (dataset.parent / "said").read_text()
        asked = [(each.kind, each.episode) for each in oracle.asked]
        assert not finished & set(asked)
        assert set(asked) == truth.keys() - finished
        assert all(asked.count(case) == 1 for case in before - finished)  # nothing that was there when the actor died
        assert len(asked) - len(set(asked)) <= 4  # what the dead actor was asking: two episodes of two kinds
    assert "a worker process died with " in (dataset.parent / "said").read_text()
    ours = metadata_of(dataset)
    assert ours.keys() == undisturbed.keys()
    for name, content in undisturbed.items():
        assert ours[name] == content, name
    assert_tidy(dataset)


@pytest.mark.slow
def test_asked_to_stop_and_started_again(undisturbed, dataset, truth):
    with oracle_of(truth, KINDS, noise_s=0.3, delay_s=0.02) as oracle:
        with started(dataset, oracle) as process:
            wait_until(lambda: len(journalled(dataset)) >= 50, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 130
        finished = journalled(dataset)
        said = (dataset.parent / "said").read_text()
        kept = "all kept; run the same command again to go on\n"
        assert said.endswith(f"stopped: {len(finished):,} of 400 questions answered in this run, {kept}")
        assert [(each.kind, each.episode) in finished for each in oracle.asked] == [True] * len(finished)
        oracle.asked.clear()
        report = annotate(config_of(dataset, oracle), quiet=True)
        assert {(each.kind, each.episode) for each in oracle.asked} == truth.keys() - finished
    assert report.num_asked == 400 - len(finished)
    assert metadata_of(dataset) == undisturbed
    assert len(read_journal(str(dataset / "annotation.run"))) == 400
    assert_tidy(dataset)
