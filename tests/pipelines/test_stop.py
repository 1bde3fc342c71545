"""SIGTERM and Ctrl-C: chunks in flight are finished, the command says how to go on, and a rerun does the rest. Two runs on
one output: the second is refused, and one that lost its lease stops.
"""

import json
import os
import re
import signal

import pytest

from sarm_ray.errors import OutputExistsError
from tests.pipelines.crashes import (
    CHUNKS,
    command_here,
    config_in,
    encoded_in,
    said,
    scored_in,
    started,
    take_up,
    wait_until,
)
from tests.pipelines.runs import files_below, needs_parity, score_one
from tests.sampling import others_slow

pytestmark = needs_parity

IN_FLIGHT = "chunks in flight are being finished; once more to stop at once\n"
GO_ON = "all kept; run the same command again to go on\n"


def begun(folder) -> list[str]:
    return [path.name.removeprefix("begun-") for path in folder.glob("begun-*")]


@pytest.mark.parametrize(
    ("number", "whole_group"),
    others_slow([(signal.SIGTERM, False), (signal.SIGINT, True)], [(signal.SIGINT, True)]),
    ids=["SIGTERM", "Ctrl-C"],
)
def test_asked_to_stop_while_encoding(undisturbed, tmp_path, number, whole_group):
    """A terminal's Ctrl-C goes to every process of the group: a Ray of the run's own must survive it until the end."""
    with started(tmp_path, "tests.pipelines.injected", "hold encoding until stop", own_ray=whole_group) as process:
        wait_until(
            lambda: encoded_in(tmp_path) == {(0, 0): 256} and sorted(begun(tmp_path)) == ["chunk", "job"], process
        )
        os.killpg(process.pid, number) if whole_group else process.send_signal(number)
        assert process.wait() == 130
    words = said(tmp_path)
    assert words.count(f"{number.name}: {IN_FLIGHT}") == 1
    assert words.endswith(f"stopped: 300 of 990 frames encoded, 0 scored in this run, {GO_ON}")
    assert "Traceback" not in words
    assert "died" not in words
    assert encoded_in(tmp_path) == {(0, 0): 256, (0, 256): 44}  # the one in flight too, and no other was begun
    assert files_below(tmp_path / "out.parquet.run") == ["config.yaml"]
    clear(tmp_path)
    take_up(tmp_path, undisturbed)


@pytest.mark.slow
def test_asked_to_stop_while_scoring(undisturbed, tmp_path):
    with started(tmp_path, "tests.pipelines.injected", "hold scoring until stop") as process:
        wait_until(lambda: len(scored_in(tmp_path)) == 1 and len(begun(tmp_path)) >= 2, process)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    expected = {chunk: CHUNKS[chunk] for number, chunk in enumerate(CHUNKS) if str(number) in begun(tmp_path)}
    assert scored_in(tmp_path) == expected
    words, num_scored = said(tmp_path), sum(expected.values())
    assert words.count(f"SIGINT: {IN_FLIGHT}") == 1
    assert words.endswith(f"stopped: 990 of 990 frames encoded, {num_scored} scored in this run, {GO_ON}")
    assert "Traceback" not in words
    clear(tmp_path)
    take_up(tmp_path, undisturbed)


def test_a_second_signal_stops_at_once(undisturbed, tmp_path):
    """Chunks in flight are lost, and nothing else: here they would never end."""
    with started(tmp_path, "tests.pipelines.injected", "hold encoding until go") as process:
        wait_until(
            lambda: encoded_in(tmp_path) == {(0, 0): 256} and sorted(begun(tmp_path)) == ["chunk", "job"], process
        )
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: f"SIGTERM: {IN_FLIGHT}" in said(tmp_path), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 130
    assert said(tmp_path).endswith("\ninterrupted; finished chunks are kept, run the same command again to go on\n")
    assert "Traceback" not in said(tmp_path)
    assert encoded_in(tmp_path) == {(0, 0): 256}
    assert files_below(tmp_path / "out.parquet.run") == ["config.yaml"]
    clear(tmp_path)
    take_up(tmp_path, undisturbed)


def test_a_second_run_on_the_same_output_is_refused(undisturbed, tmp_path):
    with started(tmp_path, "tests.pipelines.injected", "hold encoding until go") as process:
        wait_until(lambda: begun(tmp_path), process)
        second = command_here(tmp_path)
        assert second.exit_code == 2
        assert second.stderr.endswith(
            f"\nerror: {tmp_path}/out.parquet.run is being written by process {process.pid} on {os.uname().nodename}; "
            "wait for that run, or choose another --output\n"
        )
        assert process.poll() is None
        (tmp_path / "go").touch()
        assert process.wait() == 0
    clear(tmp_path)
    take_up(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_run_that_was_suspended_and_lost_its_lease_writes_no_output(undisturbed, tmp_path):
    lease = tmp_path / "out.parquet.run/lease.json"
    with started(tmp_path, "tests.pipelines.injected", "hold encoding until go") as process:
        wait_until(lambda: begun(tmp_path), process)
        process.send_signal(signal.SIGSTOP)
        taken = {**json.loads(lease.read_bytes()), "host": "elsewhere", "pid": 7, "token": "another"}
        lease.write_text(json.dumps(taken))
        process.send_signal(signal.SIGCONT)
        (tmp_path / "go").touch()
        assert process.wait() == 2
    assert said(tmp_path).endswith(
        f"\nerror: {lease} is held by process 7 on elsewhere now; this run stops, its finished chunks are kept\n"
    )
    assert not (tmp_path / "out.parquet").exists()
    assert json.loads(lease.read_bytes()) == taken
    assert (encoded_in(tmp_path), scored_in(tmp_path)) == (CHUNKS, CHUNKS)
    lease.unlink()
    clear(tmp_path)
    take_up(tmp_path, undisturbed)


def test_a_finished_output_is_refused_before_anything_else(undisturbed):
    with pytest.raises(OutputExistsError, match=f"^{re.escape(str(undisturbed.output))} exists; replace it with"):
        score_one(config_in(undisturbed.output.parent))


def clear(folder) -> None:
    """Take away what the faults left."""
    for path in [*folder.glob("begun-*"), *folder.glob("go"), *folder.glob("first")]:
        path.unlink()
