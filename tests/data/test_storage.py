"""Locations, stamps and atomic writes, on a local disk and on an object store (fsspec's in memory)."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import psutil
import pytest

from sarm_ray.data import hub, storage
from sarm_ray.errors import DatasetError, StoreError


@pytest.fixture(params=["local", "file", "memory"])
def folder(request, tmp_path) -> str:
    """A fresh folder: a path, a URL of it, or a place in a store that is not a disk."""
    return {"local": str(tmp_path / "x"), "file": f"file://{tmp_path}/x", "memory": f"memory://{tmp_path}/x"}[
        request.param
    ]


def all_files(location: str) -> list[str]:
    """Everything that lies there, temporaries too."""
    fs, path = fsspec.core.url_to_fs(location)
    return sorted(name.rsplit("/", 1)[-1] for name in fs.find(path)) if fs.exists(path) else []


def test_what_is_written_is_read(folder):
    place = storage.join(folder, "a", "b.bin")
    assert not storage.exists(place)
    assert storage.list_files(folder) == {}
    storage.write_atomically(place, lambda stream: stream.write(b"one"))
    assert storage.exists(place)
    assert storage.read_bytes(place) == b"one"
    with storage.open_input(place) as stream:
        assert stream.read() == b"one"
    assert list(storage.list_files(folder)) == ["a/b.bin"]
    assert list(storage.list_files(storage.parent(place))) == ["b.bin"]
    assert all_files(folder) == ["b.bin"]
    storage.write_atomically(place, lambda stream: stream.write(b"two, longer"))
    assert storage.read_bytes(place) == b"two, longer"
    for _ in range(2):
        storage.remove_file(place)
    assert storage.list_files(folder) == {}


def test_a_failed_write_leaves_nothing_behind(folder):
    place = storage.join(folder, "b.bin")

    def fail(stream):
        stream.write(b"half of ")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        storage.write_atomically(place, fail)
    assert all_files(folder) == []
    storage.write_atomically(place, lambda stream: stream.write(b"whole"))
    with pytest.raises(RuntimeError, match="disk on fire"):
        storage.write_atomically(place, fail)
    assert storage.read_bytes(place) == b"whole"
    assert all_files(folder) == ["b.bin"]


def test_nobody_sees_a_partial_file(folder):
    """While a writer is half-way, readers see the old content, and the listing does not show the new one."""
    place = storage.join(folder, "b.bin")
    storage.write_atomically(place, lambda stream: stream.write(b"old"))
    seen = []

    def slowly(stream):
        stream.write(b"n")
        stream.flush()
        seen.append((storage.read_bytes(place), sorted(storage.list_files(folder))))
        stream.write(b"ew")

    storage.write_atomically(place, slowly)
    assert seen == [(b"old", ["b.bin"])]
    assert storage.read_bytes(place) == b"new"


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    place = str(tmp_path / "b.bin")
    barrier = threading.Barrier(2)

    def write(content: bytes):
        def body(stream):
            stream.write(content[:3])
            barrier.wait(10)
            stream.write(content[3:])

        storage.write_atomically(place, body)

    writers = [threading.Thread(target=write, args=(text,)) for text in (b"aaaaaa", b"bbbbbb")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(20)
    assert storage.read_bytes(place) in (b"aaaaaa", b"bbbbbb")
    assert all_files(str(tmp_path)) == ["b.bin"]


def test_remove_temporaries_takes_what_a_killed_writer_left_and_nothing_else(tmp_path):
    code = (
        "import os, signal; from sarm_ray.data import storage;"
        f"storage.write_atomically({str(tmp_path / 'b.bin')!r}, lambda s: os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    running = tmp_path / left.name.replace(left.name.split("-")[2], str(os.getpid()))
    others = [running, tmp_path / ".tmp-elsewhere-1-ab-b.bin", tmp_path / ".hidden", tmp_path / "c.bin"]
    for path in others:
        path.write_bytes(b"x")
    assert sorted(storage.list_files(str(tmp_path))) == [".hidden", "c.bin"]
    storage.remove_temporaries(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted(others)
    storage.remove_temporaries(str(tmp_path / "not" / "there"))
    storage.remove_temporaries("memory://bucket/folder")


def test_a_temporary_of_a_process_whose_number_another_one_has_now_is_removed(tmp_path):
    """In a container the first process has the same number after every restart."""
    left = tmp_path / f"{storage.TEMPORARY_PREFIX}{storage._HOST}-{os.getpid()}-ab-b.bin"
    left.write_bytes(b"x")
    storage.remove_temporaries(str(tmp_path))
    assert list(tmp_path.iterdir()) == [left]
    before = psutil.Process().create_time() - 60
    os.utime(left, (before, before))
    storage.remove_temporaries(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_of_a_dead_process_that_nobody_waited_for_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    (tmp_path / f"{storage.TEMPORARY_PREFIX}{storage._HOST}-{process.pid}-ab-b.bin").write_bytes(b"x")
    storage.remove_temporaries(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    process.wait()


def test_links_are_followed_and_stamped_by_what_they_lead_to(tmp_path):
    disk = tmp_path / "disk2"
    disk.mkdir()
    (disk / "a.mp4").write_bytes(b"first")
    root = tmp_path / "data"
    root.mkdir()
    (root / "chunk-000").symlink_to(disk)
    (root / "gone.mp4").symlink_to(disk / "nothing")
    before = storage.list_files(str(root))
    assert list(before) == ["chunk-000/a.mp4"]
    os.utime(disk / "a.mp4", (1000, 1000))
    assert storage.list_files(str(root)) != before


def test_stamps_tell_that_a_file_was_written_anew(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"first")
    os.utime(path, (1000, 1000))
    before = storage.list_files(str(tmp_path))["v.mp4"]
    assert storage.list_files(str(tmp_path))["v.mp4"] == before
    os.utime(path, (1001, 1001))
    touched = storage.list_files(str(tmp_path))["v.mp4"]
    path.write_bytes(b"second")
    os.utime(path, (1000, 1000))
    assert len({before, touched, storage.list_files(str(tmp_path))["v.mp4"]}) == 3
    assert storage.stamp_of({"size": 7, "ETag": '"abc"', "mtime": 1}) == '7-"abc"'
    assert storage.stamp_of({"size": 7, "LastModified": "then"}) == "7-then"
    assert storage.stamp_of({}) == "0-"


def test_listing_follows_links(tmp_path):
    """The Hub's cache is made of links to blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/123").write_bytes(b"content")
    (tmp_path / "snapshot/meta").mkdir(parents=True)
    (tmp_path / "snapshot/meta/info.json").symlink_to("../../blobs/123")
    listing = storage.list_files(str(tmp_path / "snapshot"))
    assert list(listing) == ["meta/info.json"]
    assert listing["meta/info.json"].startswith("7-")


def test_folders_that_nobody_may_write_to_are_left_alone_even_by_root(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    assert storage.is_writable_folder(str(folder))
    folder.chmod(0o555)
    try:
        assert not storage.is_writable_folder(str(folder))
    finally:
        folder.chmod(0o755)
    assert not storage.is_writable_folder(str(tmp_path / "absent"))
    (tmp_path / "file").touch()
    assert not storage.is_writable_folder(str(tmp_path / "file"))


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/b") == str(tmp_path / "a/b")
    assert storage.absolute("~/x") == str(Path("~/x").expanduser().resolve())
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"
    assert storage.join("s3://bucket/", "a", "b") == "s3://bucket/a/b"
    assert storage.parent("/a/b/") == "/a"
    assert storage.is_local("/a/b")
    assert storage.is_local("file:///a/b")
    assert not storage.is_local("memory://a/b")


def test_schemes_that_cannot_be_opened():
    with pytest.raises(DatasetError, match=r"^nosuch://bucket/a: Protocol not known: nosuch"):
        storage.exists("nosuch://bucket/a")
    if importlib.util.find_spec("s3fs") is None:
        with pytest.raises(DatasetError, match=r"^s3://bucket/a: Install s3fs to access S3$"):
            storage.read_bytes("s3://bucket/a")


def test_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SARM_RAY_CACHE", str(tmp_path / "mine"))
    assert storage.user_cache() == str(tmp_path / "mine")
    monkeypatch.setenv("SARM_RAY_CACHE", "s3://bucket/cache")
    assert storage.user_cache() == "s3://bucket/cache"
    monkeypatch.delenv("SARM_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert storage.user_cache() == str(tmp_path / "xdg/sarm_ray")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.user_cache() == str(tmp_path / ".cache/sarm_ray")


def test_lerobot_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "lr"))
    assert hub.lerobot_home() == tmp_path / "lr"
    monkeypatch.delenv("HF_LEROBOT_HOME")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert hub.lerobot_home() == tmp_path / "hf/lerobot"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.lerobot_home() == tmp_path / ".cache/huggingface/lerobot"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lerobot/pusht", True),
        ("a-b/c.d_e", True),
        ("pusht", False),
        ("./a/b", False),
        ("../b", False),
        ("/a/b", False),
        ("~/b", False),
        ("a/b/c", False),
        ("a/", False),
        ("/b", False),
        ("", False),
    ],
)
def test_hub_ids(name, expected):
    assert hub.is_hub_id(name) is expected


def test_an_impossible_repository_name_is_an_error_for_people():
    with pytest.raises(
        DatasetError, match=r"^a b/c d: no such local folder, and the Hub has no such dataset within reach"
    ):
        hub.download_from_hub("a b/c d", ["*"], None, "dataset")


@pytest.mark.parametrize("write", [storage.write_file, storage.create_file])
def test_what_cannot_be_written_is_one_line(tmp_path, write):
    (tmp_path / "file").write_text("mine")
    location = str(tmp_path / "file" / "below.json")
    with pytest.raises(StoreError) as caught:
        write(location, b"{}")
    reasons = ("File exists", "Not a directory")
    assert str(caught.value) in [f"{location}: cannot be written ({r}); what is finished is kept" for r in reasons]
    assert files_of(tmp_path) == ["file"]


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_created_once(tmp_path):
    location = str(tmp_path / "new/lease.json")
    assert storage.create_file(location, b"first")
    assert not storage.create_file(location, b"second")
    assert storage.read_bytes(location) == b"first"
    assert files_of(tmp_path / "new") == ["lease.json"]
