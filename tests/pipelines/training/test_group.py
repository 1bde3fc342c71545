"""What to make of a group's end: a death, after which it goes on, or an error of ours, which ends the run."""

import pytest
import ray
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from sarm_ray.errors import TrainingError
from sarm_ray.pipelines.training.group import Death, _judge

LOST = RuntimeError("[../gloo/transport/tcp/pair.cc:525] Connection closed by peer [127.0.0.1]:1234")
LATE = RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 30000ms for recv operation")


def ended(*failures: BaseException) -> WorkerGroupError:
    """As Ray Train tells of it: what a process raised travels in a wrapper."""
    told = [
        each if isinstance(each, ray.exceptions.RayError) else UserExceptionWithTraceback(each, f"Traceback: {each!r}")
        for each in failures
    ]
    return WorkerGroupError("in words", dict(enumerate(told)))


@pytest.mark.parametrize(
    ("failures", "of"),
    [
        ([LOST, ray.exceptions.ActorDiedError()], "process"),
        ([LOST, LOST], "unknown"),
        ([LATE, LOST], "process"),
        ([ray.exceptions.NodeDiedError("it died"), LOST], "node"),
        ([KeyError("out of a wreck"), ray.exceptions.ActorDiedError()], "process"),
    ],
)
def test_a_death(failures, of):
    death = _judge(ended(*failures))
    assert isinstance(death, Death)
    assert death.of == of


@pytest.mark.parametrize("failures", [[KeyError("loss")], [KeyError("loss"), LOST], [LOST, KeyError("loss")]])
def test_a_bug_is_no_death_though_its_peers_lost_the_connection(failures):
    with pytest.raises(WorkerGroupError, match="in words"):
        _judge(ended(*failures))


def test_an_error_of_ours_comes_through():
    with pytest.raises(TrainingError, match=r"^the loss is NaN$"):
        _judge(ended(LOST, TrainingError("the loss is NaN")))
