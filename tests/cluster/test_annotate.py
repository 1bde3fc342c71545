"""A host is killed while it annotates: the same metadata as of an undisturbed run, and no answer is asked for twice."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sarm_ray.demo.dataset import FORMAT
from sarm_ray.demo.lerobot_writer import write_lerobot
from tests.cluster.faults import start, strike
from tests.cluster.hosts import STORE, address, cluster, needs_hosts, wait_for
from tests.pipelines.annotation_oracle import MODEL, Oracle
from tests.pipelines.test_annotate_crash import KINDS, blank, demonstrations, journalled, metadata_of, truth_of

pytestmark = [pytest.mark.cluster, needs_hosts]

NUM_EPISODES = 60


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "tabletop"
    write_lerobot(root, FORMAT, [blank(each) for each in demonstrations()[:NUM_EPISODES]])
    return root


@pytest.fixture(scope="module")
def hosts() -> Iterator:
    with cluster() as hosts:
        hosts.add(STORE)
        yield hosts


def command(dataset: Path, oracle: Oracle) -> list[str]:
    names = [word for kind in ("sparse", "dense") for name in KINDS[kind] for word in (f"--{kind}-subtasks", name)]
    return [
        "annotate", str(dataset), "--engine", "openai", "--endpoint", oracle.url, "--model", MODEL, "--num-workers", "2",
        "--concurrency", "1", "--allow-repeats", "--num-visualizations", "0", *names,
    ]  # fmt: skip


def test_a_host_is_killed(hosts, drawn, measured):
    truth = truth_of(demonstrations()[:NUM_EPISODES])
    runs = {}
    for name in ("undisturbed", "killed"):
        dataset: Path = hosts.folder / name / "tabletop"
        shutil.copytree(drawn, dataset)
        oracle = hosts.call(STORE, lambda: Oracle(truth, KINDS, noise_s=0.3, delay_s=0.15, host=address(STORE)))
        run = start(hosts, name, *command(dataset, oracle))
        answered: set = set()
        if name == "killed":
            wait_for(lambda dataset=dataset: len(journalled(dataset)) >= 20, run.ended, what="twenty answers")
            strike(hosts, run, "annotating")
            answered = journalled(dataset)
            before = len(oracle.asked)
        code, said, seconds = run.end()
        assert code == 0, said
        if name == "killed":
            assert not answered & {(each.kind, each.episode) for each in oracle.asked[before:]}
        assert {(each.kind, each.episode) for each in oracle.asked} == truth.keys()
        runs[name] = (metadata_of(dataset), seconds)
        oracle.server.shutdown()
        oracle.server.server_close()
    assert runs["killed"][0] == runs["undisturbed"][0]
    measured("annotate, nothing happens", runs["undisturbed"][1], None)
    measured("annotate, a host killed while annotating", runs["killed"][1], runs["undisturbed"][1])
