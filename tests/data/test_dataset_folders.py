"""Which folders are datasets, and which files are theirs: on a disk and in a listing alike."""

import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.data.dataset_folders import INFO, digest_files, group_files, list_datasets
from tests.datasets import write_dataset

THERE = {
    "a/meta/info.json": ["meta/info.json"],
    "a/meta/episodes/chunk-000/file-000.parquet": ["meta/episodes/chunk-000/file-000.parquet"],
    "a/videos/cam/chunk-000/file-000.mp4": ["videos/cam/chunk-000/file-000.mp4"],
    "a/images/cam/episode_000000/frame_000000.png": [],  # of an episode that is being recorded
    "a/inside/meta/info.json": ["inside/meta/info.json"],  # no dataset of its own
    "a/sarm_progress.parquet": [],
    "a/sarm_progress.parquet.run/meta/info.json": [],
    "a/.cache/huggingface/meta/info.json": [],
    "a/videos/.partial.mp4": [],
    "a.sarm_features/meta/info.json": [],
    "deep/er/c/meta/info.json": ["meta/info.json"],
    "deep/er/c/data/chunk-000/episode_000000.parquet": ["data/chunk-000/episode_000000.parquet"],
    "deep/er/too/far/meta/info.json": [],
    ".hidden/meta/info.json": [],
    "images/meta/info.json": ["meta/info.json"],
    "none/data/info.json": [],
}
FOUND = {
    root: sorted(own for path, names in THERE.items() if path.startswith(f"{root}/") for own in names)
    for root in ("a", "deep/er/c", "images")
}


def test_a_listing():
    found = group_files(dict.fromkeys(THERE, "stamp"))
    assert {root: sorted(files) for root, files in found.items()} == FOUND


def test_a_folder(tmp_path):
    for path in THERE:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    found = list_datasets(str(tmp_path))
    assert {root: sorted(files) for root, files in found.items()} == FOUND
    assert list_datasets(str(tmp_path / "nowhere")) == {}


def test_a_folder_that_is_a_dataset(tmp_path):
    root = write_dataset(tmp_path / "toy", "v3.0", [3], size=(32, 32))
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert INFO in there
    assert {root: set(files) for root, files in list_datasets(str(root)).items()} == {"": there}


def test_the_insides_of_what_is_not_followed_are_not_even_listed(tmp_path):
    """What is written beside a dataset may be many files. Python itself tells which folders are listed."""
    root = write_dataset(tmp_path / "toy", "v3.0", [3], size=(32, 32))
    for folder in (tmp_path / "toy.sarm_features/x", root / "images/x", root / "o.run/x", tmp_path / "1/2/3/4/5"):
        folder.mkdir(parents=True)
    listed: list[str] | None = []

    def hear(event: str, arguments: tuple) -> None:
        if event == "os.scandir" and listed is not None:
            listed.append(str(arguments[0]))

    sys.addaudithook(hear)  # for good, hence the None
    assert list(list_datasets(str(tmp_path))) == ["toy"]
    below, listed = {path.removeprefix(f"{tmp_path}/") for path in listed if path.startswith(f"{tmp_path}/")}, None
    assert {path for path in below if path.startswith("1")} == {"1", "1/2", "1/2/3", "1/2/3/4"}
    assert {path for path in below if path.startswith("toy")} == {"toy"} | {
        f"toy/{path.relative_to(root)}"
        for path in root.rglob("*")
        if path.is_dir() and path.relative_to(root).parts[0] not in ("images", "o.run")
    }


@given(st.dictionaries(st.text("ab/", min_size=1), st.text("12", max_size=2), max_size=5), st.randoms())
def test_a_digest_is_of_names_and_stamps_in_whatever_order(files, random):
    shuffled = list(files.items())
    random.shuffle(shuffled)
    assert digest_files(dict(shuffled)) == digest_files(files)
    for path in files:
        assert digest_files({**files, path: f"{files[path]}x"}) != digest_files(files)
        assert digest_files({other: stamp for other, stamp in files.items() if other != path}) != digest_files(files)


def test_a_digest_changes_with_what_is_on_the_disk(tmp_path: Path):
    root = write_dataset(tmp_path / "toy", "v2.1", [3], size=(32, 32))

    def digest() -> str:
        return digest_files(list_datasets(str(tmp_path))["toy"])

    before = digest()
    (root / "sarm_progress.parquet").write_text("ours")
    (root / "README.md").write_text("nobody's")
    assert digest() == before
    with (root / INFO).open("a") as stream:
        stream.write(" ")
    assert digest() != before
