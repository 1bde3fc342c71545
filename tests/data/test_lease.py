"""Leases: who is alive, who is dead, who gets what the dead one held."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from sarm_ray.data import lease as leases
from sarm_ray.data.lease import ABANDONED_S, Lease, hold_lease
from sarm_ray.errors import OutputExistsError

HERE = platform.node()


def another(folder: Path, **changes) -> Lease:
    """A lease of this process that this module never took out; it is written into the folder."""
    location, process = f"{folder}/lease.json", psutil.Process()
    holder = replace(Lease(location, HERE, process.pid, process.create_time(), "another", time.time()), **changes)
    folder.mkdir(exist_ok=True)
    Path(location).write_text(json.dumps({key: value for key, value in asdict(holder).items() if key != "location"}))
    return holder


def there(folder: Path) -> dict:
    return json.loads((folder / "lease.json").read_text())


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def zombie() -> Iterator[tuple[int, float]]:
    """A process that has ended and that nobody has waited for: its number and start."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time()
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    yield process.pid, started
    process.communicate()


def refused(folder: Path, holder: Lease) -> str:
    return (
        f"^{re.escape(str(folder))} is being written by process {holder.pid} on {holder.host}; "
        "wait for that run, or choose another --output$"
    )


def assert_taken_over(folder: Path, **options) -> None:
    with hold_lease(str(folder), **options) as ours:
        assert there(folder)["token"] == ours.token != "another"
        ours.check()
    assert list(folder.iterdir()) == []


def test_a_lease_names_its_holder_and_is_gone_afterwards(tmp_path):
    before = time.time()
    with hold_lease(str(tmp_path / "run")) as lease:
        assert there(tmp_path / "run") == {
            "host": HERE,
            "pid": os.getpid(),
            "started_s": psutil.Process().create_time(),
            "token": lease.token,
            "beat_s": lease.beat_s,
        }
        assert before <= lease.beat_s <= time.time()
        lease.check()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_lease_is_released_by_an_exception_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), hold_lease(str(tmp_path)):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_lives_on_this_machine_is_left_alone_at_once(tmp_path):
    holder = another(tmp_path, beat_s=0.0)  # however old its heartbeat: it may be suspended
    with pytest.raises(OutputExistsError, match=refused(tmp_path, holder)), hold_lease(str(tmp_path), watch_s=3600):
        pass
    assert there(tmp_path)["token"] == "another"


def test_a_lease_is_held_once_in_a_process_too(tmp_path):
    with hold_lease(str(tmp_path)) as lease:
        with pytest.raises(OutputExistsError, match=refused(tmp_path, lease)), hold_lease(str(tmp_path)):
            pass
        lease.check()


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path, dead):
    another(tmp_path, pid=dead)
    assert_taken_over(tmp_path, watch_s=3600)


def test_a_process_that_nobody_waited_for_holds_nothing(tmp_path, zombie):
    another(tmp_path, pid=zombie[0], started_s=zombie[1])
    assert_taken_over(tmp_path, watch_s=3600)


def test_a_later_process_of_the_same_number_holds_nothing(tmp_path):
    another(tmp_path, started_s=psutil.Process().create_time() - 60)
    assert_taken_over(tmp_path, watch_s=3600)


def test_a_heartbeat_elsewhere_that_stands_still_is_taken_over(tmp_path):
    another(tmp_path, host="elsewhere", beat_s=time.time() + 500)  # by a clock that is ahead
    began = time.monotonic()
    assert_taken_over(tmp_path, watch_s=0.5)
    assert time.monotonic() - began >= 0.5


def test_a_heartbeat_elsewhere_that_was_abandoned_is_taken_over_at_once(tmp_path):
    another(tmp_path, host="elsewhere", beat_s=time.time() - ABANDONED_S - 1)
    assert_taken_over(tmp_path, watch_s=3600)


def test_a_heartbeat_elsewhere_that_moves_is_left_alone(tmp_path, monkeypatch):
    """The holder is real and beats; only its host has another name."""
    with monkeypatch.context() as patch:
        patch.setattr(platform, "node", lambda: "elsewhere")
        holding = hold_lease(str(tmp_path), beat_s=0.05)
        holder = holding.__enter__()
    try:
        with pytest.raises(OutputExistsError, match=refused(tmp_path, holder)), hold_lease(str(tmp_path), watch_s=60):
            pass
        holder.check()
    finally:
        holding.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_lease_elsewhere_that_is_released_while_it_is_watched_is_free(tmp_path, monkeypatch):
    another(tmp_path, host="elsewhere")
    look = leases._read

    def read_and_release(location: str) -> Lease | None:
        found = look(location)
        if found is not None and found.token == "another":
            (tmp_path / "lease.json").unlink()
        return found

    monkeypatch.setattr(leases, "_read", read_and_release)
    assert_taken_over(tmp_path, watch_s=60)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"host": 1}', b'{"pid": "x"}'])
def test_a_file_that_is_no_lease_holds_nothing(tmp_path, content):
    (tmp_path / "lease.json").write_bytes(content)
    assert_taken_over(tmp_path, watch_s=3600)


def test_check_says_who_holds_it_now(tmp_path):
    held_by = (
        f"^{re.escape(str(tmp_path))}/lease.json is held by {{}} now; this run stops, its finished chunks are kept$"
    )
    with hold_lease(str(tmp_path)) as lease:
        another(tmp_path, host="elsewhere", pid=7)
        with pytest.raises(OutputExistsError, match=held_by.format("process 7 on elsewhere")):
            lease.check()
        (tmp_path / "lease.json").unlink()
        with pytest.raises(OutputExistsError, match=held_by.format("nobody")):
            lease.check()


def test_release_leaves_the_lease_of_another(tmp_path):
    with hold_lease(str(tmp_path), beat_s=0.01) as lease:
        another(tmp_path)
        heart = leases.threading.Thread(target=leases._beat, args=(lease, 0.01, leases.threading.Event()))
        heart.start()
        heart.join(60)  # it ends by itself: what it finds is not its own
        assert not heart.is_alive()
    assert there(tmp_path)["token"] == "another"


RACER = """
import sys
from pathlib import Path
from sarm_ray.data.lease import hold_lease
from sarm_ray.errors import OutputExistsError

folder, me = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
try:
    with hold_lease(str(folder / "run")) as lease:
        print("acquired", flush=True)
        sys.stdin.readline()
        lease.check()
        print("holds", flush=True)
        sys.stdin.readline()
except OutputExistsError:
    print("refused", flush=True)
"""


def word(racer: subprocess.Popen) -> str:
    return racer.stdout.readline().strip()


def go_on(racer: subprocess.Popen) -> None:
    racer.stdin.write("\n")
    racer.stdin.flush()


@pytest.mark.parametrize("attempt", range(5))
def test_of_two_that_race_for_a_dead_ones_lease_one_gets_it(tmp_path, dead, attempt):
    another(tmp_path / "run", pid=dead)
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([*command, str(number)], **pipes) for number in range(2)]
    try:
        assert [word(racer) for racer in racers] == ["ready", "ready"]
        for racer in racers:
            go_on(racer)
        words = [word(racer) for racer in racers]  # both have done what they could by now
        for number, racer in enumerate(racers):
            if words[number] == "acquired":
                go_on(racer)
                words[number] = word(racer)
        assert sorted(words) == ["holds", "refused"]
    finally:
        for racer in racers:
            racer.communicate()
    assert list((tmp_path / "run").iterdir()) == []
