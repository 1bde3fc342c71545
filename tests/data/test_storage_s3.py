"""Locations on an object store: a real S3 protocol over HTTP, and what goes wrong with one."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.data import progress_io, storage
from sarm_ray.data.json_files import read_json
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.errors import DatasetError, StoreError
from tests.datasets import write_dataset
from tests.s3 import BUCKET, S3, s3_environment, s3_settings, serve_s3


@pytest.fixture(scope="module")
def server():
    with serve_s3() as s3:
        yield s3


@pytest.fixture
def s3(server):
    server.delete(*server.keys())
    with s3_settings(server.endpoint):
        yield server


def test_what_is_written_is_read(s3: S3):
    folder = f"s3://{BUCKET}/a b/x"
    place = storage.join(folder, "c", "d.bin")
    assert not storage.exists(place)
    assert not storage.is_folder(folder)
    assert storage.list_files(folder) == {}
    assert storage.list_names(folder) == []
    storage.write_atomically(place, lambda stream: stream.write(b"one"))
    assert storage.exists(place)
    assert storage.is_folder(folder)
    assert storage.read_bytes(place) == b"one"
    assert storage.list_names(folder) == ["c"]
    (stamp,) = storage.list_files(folder).values()
    assert stamp == storage.file_stamp(place)
    assert storage.size_of(stamp) == 3
    storage.write_atomically(place, lambda stream: stream.write(b"two"))
    assert storage.read_bytes(place) == b"two"
    assert storage.file_stamp(place) != stamp  # same size, another content
    with pytest.raises(FileNotFoundError):
        storage.file_stamp(folder)
    for _ in range(2):
        storage.remove_file(place)
    assert storage.list_files(folder) == {}
    for name in ("p/1", "p/q/2", "r"):
        storage.write_atomically(storage.join(folder, name), lambda stream: stream.write(b"x"))
    for _ in range(2):
        storage.remove_folder(storage.join(folder, "p"))
    assert s3.keys() == ["a b/x/r"]
    storage.remove_temporaries(folder)
    assert storage.create_file(storage.join(folder, "lease"), b"mine")
    assert not storage.create_file(storage.join(folder, "lease"), b"yours")
    assert storage.read_bytes(storage.join(folder, "lease")) == b"mine"


def test_what_another_process_does_is_seen_at_once(s3: S3):
    """Workers and driver write behind each other's back: no listing may be remembered."""
    folder = f"s3://{BUCKET}/parts"
    assert storage.list_files(folder) == {}
    assert not storage.exists(folder)
    s3.put("parts/1.parquet", b"x")
    assert list(storage.list_files(folder)) == ["1.parquet"]
    assert storage.exists(f"{folder}/1.parquet")
    s3.put("parts/2.parquet", b"x")
    assert storage.list_names(folder) == ["1.parquet", "2.parquet"]
    s3.delete("parts/1.parquet")
    assert list(storage.list_files(folder)) == ["2.parquet"]
    assert not storage.exists(f"{folder}/1.parquet")
    before = storage.file_stamp(f"{folder}/2.parquet")
    s3.put("parts/2.parquet", b"y")
    assert storage.file_stamp(f"{folder}/2.parquet") != before
    assert storage.read_bytes(f"{folder}/2.parquet") == b"y"


def test_empty_objects_that_stand_for_folders_are_no_files(s3: S3):
    s3.put("ds/", b"")
    s3.put("ds/videos/", b"")
    s3.put("ds/videos/a.mp4", b"x")
    assert list(storage.list_files(f"s3://{BUCKET}/ds")) == ["videos/a.mp4"]
    assert list(storage.list_files(f"s3://{BUCKET}/ds/")) == ["videos/a.mp4"]


def test_parquet_is_read_by_ranges(s3: S3):
    table = pa.table({"n": range(100_000), "text": [str(n) * 5 for n in range(100_000)]})
    place = f"s3://{BUCKET}/t.parquet"
    storage.write_atomically(place, lambda stream: pq.write_table(table, stream, row_group_size=1000))
    with storage.open_input(place) as stream:
        assert pq.read_table(stream).equals(table)
        assert stream.seek(0, 2) == len(s3.get("t.parquet"))
        assert stream.seek(4) == stream.tell() == 4
        buffer = bytearray(8)
        assert stream.readinto(buffer) == 8
        assert bytes(buffer) == s3.get("t.parquet")[4:12]
    progress_io.write_part(f"s3://{BUCKET}/run/parts-1", "p", table)
    storage.write_file(f"s3://{BUCKET}/run/config.yaml", b"x")
    progress_io.remove_files(f"s3://{BUCKET}/run", progress_io.PARTS_PREFIX)
    assert s3.keys("run") == ["run/config.yaml"]


def test_of_a_write_that_fails_or_is_killed_nothing_is_seen(s3: S3, tmp_path):
    place = f"s3://{BUCKET}/killed.bin"

    def fail(stream):
        stream.write(b"half of ")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        storage.write_atomically(place, fail)
    assert s3.keys() == []
    code = (  # large enough to go up in several pieces
        "from sarm_ray.data import storage;"
        f"storage.write_atomically({place!r}, lambda stream: stream.truncate(130 * 2**20))"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], env=s3_environment(s3.endpoint))
    deadline = time.monotonic() + 60
    while not s3.num_uploads():
        assert time.monotonic() < deadline
        assert writer.poll() is None
        time.sleep(0.002)
    writer.kill()
    assert writer.wait(10) == -signal.SIGKILL
    assert s3.keys() == []
    assert not storage.exists(place)
    assert storage.list_files(f"s3://{BUCKET}") == {}


def test_of_two_writers_one_wins_and_readers_see_a_whole_file(s3: S3):
    place = f"s3://{BUCKET}/b.bin"
    contents = {bytes([letter]) * 200_000 for letter in b"ab"}
    storage.write_atomically(place, lambda stream: stream.write(b"a" * 200_000))

    def write(content: bytes):
        for _ in range(10):
            storage.write_atomically(place, lambda stream: stream.write(content))

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, content) for content in contents]
        while not all(writer.done() for writer in writers):
            assert storage.read_bytes(place) in contents
        for writer in writers:
            writer.result()
    assert s3.keys() == ["b.bin"]


def test_a_dataset_in_a_bucket(s3: S3, tmp_path):
    local = open_dataset(str(write_dataset(tmp_path / "ds", "v3.0", [5, 4])))
    url = s3.upload(tmp_path / "ds", "data/ds")
    for name in (url, f"{url}/"):
        remote = open_dataset(name)
        assert (remote.root, remote.name) == (url, "ds")
        assert remote.files.keys() == local.files.keys()
        assert remote.data_files.paths == local.data_files.paths
    assert remote.tasks == local.tasks
    with pytest.raises(DatasetError, match=r"^s3://bucket/data: not a LeRobot dataset \(there is no meta/info.json\)$"):
        open_dataset(f"s3://{BUCKET}/data")


def calls(place: str):
    return [
        lambda: storage.exists(place),
        lambda: storage.is_folder(place),
        lambda: storage.list_files(place),
        lambda: storage.list_names(place),
        lambda: storage.read_bytes(place),
        lambda: storage.open_input(place),
        lambda: storage.file_stamp(place),
        lambda: read_json(place, "meta/info.json"),
        lambda: storage.remove_file(place),
        lambda: storage.remove_folder(place),
        lambda: storage.write_atomically(place, lambda stream: stream.write(b"x")),
        lambda: storage.create_file(place, b"x"),
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": "/nowhere"},
            r"Unable to locate credentials; credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"},
            r'Could not connect to the endpoint URL: "http://127.0.0.1:9/.*; .* the address from AWS_ENDPOINT_URL',
        ),
        ({"AWS_PROFILE": "nosuch"}, r"The config profile \(nosuch\) could not be found; credentials come from"),
    ],
    ids=["credentials", "address", "profile"],
)
def test_a_store_that_does_not_let_us_in_is_one_line(server, settings, expected):
    place = f"s3://{BUCKET}/a/b"
    with s3_settings(server.endpoint, **settings):
        for call in calls(place) if "AWS_ENDPOINT_URL" not in settings else calls(place)[:2]:
            with pytest.raises(StoreError, match=rf"^s3://bucket/a/b(/meta/info.json)?: {expected}") as caught:
                call()
            assert "\n" not in str(caught.value)


def test_buckets_that_are_not_there(s3: S3):
    place = "s3://nosuch/a/b"
    assert not storage.exists(place)
    assert not storage.is_folder(place)
    assert storage.list_files(place) == {}
    for call in calls(place)[4:]:
        with pytest.raises(StoreError, match=r"^s3://nosuch/a/b(/meta/info.json)?: there is no bucket 'nosuch'$"):
            call()
    with pytest.raises(StoreError, match=r'^s3://N O/a: Parameter validation failed: Invalid bucket name "N O"'):
        storage.exists("s3://N O/a")


def test_a_missing_package_is_named_with_the_way_out():
    for url, package, extra in (("s3://bucket/a", "s3fs", "s3"), ("gs://bucket/a", "gcsfs", "gcs")):
        code = (
            f"import sys; sys.modules['{package}'] = None\n"
            "from sarm_ray.data import storage; from sarm_ray.errors import DatasetError\n"
            f"try: storage.read_bytes({url!r})\n"
            "except DatasetError as error: print(error)"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert said.startswith(f"{url}: ")
        assert said.endswith(f"; pip install 'sarm-ray[{extra}]'\n")
