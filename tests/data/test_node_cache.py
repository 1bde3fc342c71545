"""Copies of remote files on this machine: fetched once, bounded, whole, and never another file's bytes."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sarm_ray.data import node_cache, storage
from sarm_ray.data.rows import read_episode_table
from sarm_ray.data.video import FrameRequest, read_frames
from sarm_ray.errors import ConfigError, StoreInterruptedError, VideoError
from tests.datasets import CAMERA, frame_code, read_numbers, write_dataset
from tests.web import Web, serve_files

KB = 1000


@pytest.fixture
def web():
    with serve_files({}) as server:
        yield server


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The cache's folder, which is not there yet, with room for one megabyte."""
    monkeypatch.setenv("SARM_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(node_cache.BOUND_VARIABLE, "0.001")
    monkeypatch.setattr(node_cache, "PAUSE_S", 0.01)
    return tmp_path / "cache/remote"


def publish(web: Web, name: str, size: int = 300 * KB, seed: int = 0) -> str:
    web.files[name] = np.random.default_rng([seed, size]).bytes(size)
    return f"{web.url}/{name}"


def read(location: str) -> bytes:
    with node_cache.open_input(location) as stream:
        return stream.read()


def held(folder: Path) -> list[int]:
    """Sizes of the copies, the longest unused first."""
    copies = [path for path in folder.iterdir() if path.name != "total"]
    assert not [path for path in copies if path.suffix == ".part"]
    assert int((folder / "total").read_text()) == sum(path.stat().st_size for path in copies)
    return [path.stat().st_size for path in sorted(copies, key=lambda path: path.stat().st_mtime_ns)]


def start(code: str) -> subprocess.Popen:
    """Another process of this node."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from sarm_ray.data import node_cache\n{code}"], stdout=subprocess.PIPE
    )


def test_a_file_comes_once_and_a_local_one_never(web, folder, tmp_path):
    location = publish(web, "a.mp4")
    for _ in range(3):
        assert read(location) == web.files["a.mp4"]
    assert web.fetched == ["a.mp4"]
    assert held(folder) == [300 * KB]
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "local.mp4").write_bytes(b"x")
    assert read(str(tmp_path / "local.mp4")) == read(f"file://{tmp_path}/local.mp4") == b"x"
    assert held(folder) == [300 * KB]
    with pytest.raises(FileNotFoundError):
        read(f"{web.url}/nosuch.mp4")


def test_processes_of_a_node_fetch_once(web, folder):
    location = publish(web, "a.mp4")
    web.gate.clear()
    code = f"import hashlib; print(hashlib.sha256(node_cache.open_input({location!r}).read()).hexdigest())"
    processes = [start(code) for _ in range(4)]
    wait_until(lambda: web.fetched)
    time.sleep(0.3)  # the others are at the lock, or on their way to it
    web.gate.set()
    expected = hashlib.sha256(web.files["a.mp4"]).hexdigest().encode()
    assert [process.communicate()[0].strip() for process in processes] == [expected] * 4
    assert web.fetched == ["a.mp4"]
    assert held(folder) == [300 * KB]


def test_who_waits_takes_over_from_a_process_that_is_killed(web, folder):
    location = publish(web, "a.mp4")
    web.gate.clear()
    first = start(f"node_cache.open_input({location!r})")
    wait_until(lambda: web.fetched)
    second = start(f"print(len(node_cache.open_input({location!r}).read()))")
    time.sleep(1.0)
    assert web.fetched == ["a.mp4"]
    first.kill()
    assert first.wait(10) == -signal.SIGKILL
    wait_until(lambda: len(web.fetched) == 2)
    web.gate.set()
    assert second.communicate()[0].strip() == str(300 * KB).encode()
    assert len([path for path in folder.iterdir() if path.suffix == ".part"]) == 0


def test_the_longest_unused_copies_make_room(web, folder):
    sizes = [291 * KB, 292 * KB, 293 * KB, 294 * KB]
    locations = [publish(web, f"{size}", size) for size in sizes]
    for location in locations[:3]:
        read(location)
    read(locations[0])
    assert held(folder) == [292 * KB, 293 * KB, 291 * KB]
    with node_cache.open_input(locations[1]) as stream:  # the last used one now
        read(locations[0])
        read(locations[3])
        assert held(folder) == [292 * KB, 291 * KB, 294 * KB]
        read(locations[2])
        assert held(folder) == [291 * KB, 294 * KB, 293 * KB]
        assert stream.read() == web.files[f"{sizes[1]}"]  # evicted and still readable
    assert [web.fetched.count(f"{size}") for size in sizes] == [1, 1, 2, 1]


def test_a_file_beyond_the_bound_is_read_in_place_and_evicts_nothing(web, folder):
    small, large = publish(web, "small"), publish(web, "large", 1001 * KB)
    read(small)
    assert read(large) == web.files["large"]
    with node_cache.open_input(large) as stream:
        stream.seek(-5, os.SEEK_END)
        assert stream.read() == web.files["large"][-5:]
    assert held(folder) == [300 * KB]


@pytest.mark.parametrize("reason", ["bound", "stamp", "folder"])
def test_without_a_cache_files_are_read_in_place(web, folder, monkeypatch, reason):
    location = publish(web, "a.mp4")
    if reason == "bound":
        monkeypatch.setenv(node_cache.BOUND_VARIABLE, "0")
    elif reason == "stamp":
        web.tagged = False  # nothing would tell that the file was written anew
    else:
        folder.parent.write_text("a file where the folder should be")
    assert read(location) == web.files["a.mp4"]
    assert not folder.exists()


def test_what_comes_short_is_fetched_again_and_in_the_end_an_error(web, folder):
    location = publish(web, "a.mp4")
    web.cut = 2
    assert read(location) == web.files["a.mp4"]
    assert web.fetched == ["a.mp4"] * 3
    other = publish(web, "b.mp4", seed=1)
    web.cut = 100
    with pytest.raises(StoreInterruptedError, match=rf"^{other}: 299999 of 300000 bytes came$"):
        read(other)
    (failed,) = read_frames(other, [FrameRequest(None, 0.0, np.arange(5))], 30, 64)
    assert isinstance(failed, VideoError)
    assert str(failed) == f"{other}: not a readable video ({other}: 299999 of 300000 bytes came)"
    assert held(folder) == [300 * KB]  # and its place is free again
    web.cut = 0
    assert read(other) == web.files["b.mp4"]


def test_a_file_that_was_written_anew_is_fetched_again(web, folder):
    location = publish(web, "a.mp4")
    read(location)
    publish(web, "a.mp4", seed=1)  # of the same size
    assert read(location) == web.files["a.mp4"]
    assert web.fetched == ["a.mp4"] * 2
    stamp = storage.file_stamp(location)
    publish(web, "a.mp4", seed=2)
    (folder / "total").unlink()
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(StoreInterruptedError, match=r"a.mp4: was written anew while it was read; run again$"):
        node_cache.open_copy(location, stamp)
    assert held(folder) == []


def test_copies_that_a_crash_cut_short_are_not_believed(web, folder):
    location = publish(web, "a.mp4")
    read(location)
    (copy,) = (path for path in folder.iterdir() if path.name != "total")
    os.truncate(copy, 1000)
    assert read(location) == web.files["a.mp4"]
    orphan = folder / f"{'0' * 32}-900000.part"  # of a download that was killed
    orphan.write_bytes(b"x")
    (folder / "total").unlink()  # counted anew: the orphan's 900 kB are in it, until room is needed
    for seed in (1, 2):
        read(publish(web, f"{seed}", seed=seed))
    assert not orphan.exists()
    assert held(folder) == [300 * KB] * 3


def test_many_processes_many_files_little_room(web, folder):
    """Whatever happens at once: right bytes, never above the bound, nothing half there."""
    names = [f"{number}" for number in range(12)]
    for number, name in enumerate(names):
        publish(web, name, 200 * KB + number, seed=number)
    code = (
        "import hashlib, random, sys\n"
        f"names = random.Random(%d).choices({names!r}, k=40)\n"
        f"for name in names: print(name, hashlib.md5(node_cache.open_input({web.url!r} + '/' + name).read()).hexdigest())"
    )
    processes = [start(code % seed) for seed in range(4)]
    while any(process.poll() is None for process in processes):
        if folder.exists():
            assert sum(size_on_disk(path) for path in folder.iterdir()) <= 1000 * KB + 100
        time.sleep(0.01)
    for process in processes:
        lines = process.communicate()[0].decode().split("\n")[:-1]
        assert process.returncode == 0
        assert len(lines) == 40
        for line in lines:
            name, digest = line.split()
            assert digest == hashlib.md5(web.files[name]).hexdigest()
    assert 1 <= len(held(folder)) <= 4
    assert len(web.fetched) < 160


def test_videos_and_rows_come_through_it(web, folder, tmp_path, monkeypatch):
    monkeypatch.setenv(node_cache.BOUND_VARIABLE, "1")
    root = write_dataset(tmp_path / "ds", "v2.1", [12])
    paths = [path.relative_to(root) for path in root.rglob("*0.*") if path.suffix in (".mp4", ".parquet")]
    web.files.update({str(path): (root / path).read_bytes() for path in paths})
    rows, video = sorted((str(path) for path in paths), key=lambda path: CAMERA in path)
    for _ in range(2):
        (images,) = read_frames(f"{web.url}/{video}", [FrameRequest(None, 0.0, np.arange(12))], 30, 64)
        assert read_numbers(images) == [frame_code(0, k) for k in range(12)]
        table = read_episode_table(f"{web.url}/{rows}", ["observation.state"], None)
        assert table.equals(read_episode_table(str(root / rows), ["observation.state"], None))
    assert web.fetched == [video, rows]


def test_the_bound(tmp_path, monkeypatch):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    monkeypatch.delenv(node_cache.BOUND_VARIABLE, raising=False)
    assert node_cache._bound(tmp_path, 0) == pytest.approx(min(50e9, free / 2), rel=0.1)
    assert node_cache._bound(tmp_path, 10**15) == 50 * 10**9
    monkeypatch.setenv(node_cache.BOUND_VARIABLE, "2.5")
    assert node_cache._bound(tmp_path, 0) == 2_500_000_000
    for text in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv(node_cache.BOUND_VARIABLE, text)
        with pytest.raises(ConfigError, match=f"^SARM_RAY_REMOTE_CACHE_GB={text}: give a number of gigabytes"):
            node_cache.open_copy("http://127.0.0.1/a", "7-x")


def test_a_remote_user_cache_leaves_the_copies_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("SARM_RAY_CACHE", "memory://bucket/cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert node_cache._folder() == tmp_path / "sarm_ray/remote"
    monkeypatch.setenv("SARM_RAY_CACHE", f"file://{tmp_path}/x")
    assert node_cache._folder() == tmp_path / "x/remote"


def size_on_disk(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
