"""How many training processes there are: what is asked for, and what the cluster has room for."""

import time

import pytest
import ray
from ray.util import placement_group_table

from sarm_ray.errors import ConfigError, TrainingError
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.training.placing import asked_for_more, place
from sarm_ray.pipelines.training.workers import choose_workers
from tests.pipelines.crashes import wait_until
from tests.pipelines.training.tiny import tiny_config

EACH = {"CPU": 0.9}


@pytest.mark.parametrize(
    ("asked", "begin", "go_on"),
    [
        (4, [4], [4, 3, 2, 1]),
        ("4", [4], [4, 3, 2, 1]),
        ("2:6", [6, 4, 3, 2], [6, 4, 3, 2]),
        ("6:6", [6], [6]),
        (None, [2], [2, 1]),  # one per GPU
    ],
)
def test_sizes_divide_the_batch_of_a_pass(tmp_path, asked, begin, go_on):
    config = tiny_config(tmp_path, tmp_path, batch_size=24, gradient_accumulation_steps=2, num_workers=asked)
    workers = choose_workers(config, Cluster(num_cpus=8, num_gpus=2, device="cuda", bf16=True))
    assert (workers.sizes(begun=False), workers.sizes(begun=True)) == (begin, go_on)
    assert workers.settle is (asked == "2:6")


@pytest.mark.parametrize("asked", ["0", 0, "3:2", "two", "1:", ":2", "1:2:4", -1])
def test_no_number_of_workers(tmp_path, asked):
    with pytest.raises(ConfigError, match=r"^num_workers must be a number or MIN:MAX from 1 up, not "):
        tiny_config(tmp_path, tmp_path, num_workers=asked)


@pytest.fixture
def one_core_taken():
    @ray.remote(num_cpus=1)
    class Other:
        def here(self) -> bool:
            return True

    other = Other.remote()
    ray.get(other.here.remote())
    yield
    ray.kill(other)


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


def test_as_many_as_there_is_room_for(capsys):
    """The session's Ray has two cores."""
    assert place([2, 1], EACH, wait_s=60, settle=False, quiet=False) == 2
    assert capsys.readouterr().err == ""
    assert place([6, 4, 2, 1], EACH, wait_s=600, settle=True, quiet=False) == 2  # at once
    assert capsys.readouterr().err == ""
    assert place([4, 2, 1], EACH, wait_s=0.5, settle=False, quiet=False) == 2
    assert capsys.readouterr().err == (
        "note: 4 training processes need as many CPU cores, the cluster has 2; waiting up to 0.5 s for more\n"
    )
    with pytest.raises(TrainingError, match=r"^4 training processes need .* has 2, and after 0.2 s no more came; add "):
        place([4], EACH, wait_s=0.2, settle=False, quiet=True)


def test_what_others_hold_is_no_room(one_core_taken):
    assert place([2, 1], EACH, wait_s=600, settle=True, quiet=True) == 1
    with pytest.raises(TrainingError, match=r"the cluster has 2, of which 1 are free, and after 0.2 s"):
        place([2], EACH, wait_s=0.2, settle=False, quiet=True)
    with asked_for_more(1, [2, 1], {"CPU": 0.5}) as room:
        wait_until(lambda: room() == 2, patience_s=60)
    with asked_for_more(1, [2, 1], {"CPU": 1.5}) as room:
        time.sleep(1)
        assert room() == 1
