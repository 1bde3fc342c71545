"""LeRobotDataset v3.0, v2.1 and v2.0, read without LeRobot: metadata as arrays, rows by column.

Metadata that is wrong while the file is unambiguous is recovered from, and the recovery is put into `notices` once. No
path that metadata names leaves the dataset's root. Frames are not read here (`data/video.py`).
"""

import string
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.data import hub, storage
from sarm_ray.data.episode_lines import read_lines, share_texts
from sarm_ray.data.json_files import read_json
from sarm_ray.errors import DatasetError, name_list

VERSIONS = ("v3.0", "v2.1", "v2.0")
SAME_LAYOUT = {"v3.1": "v3.0"}  # what lerobot-annotate writes: columns of language more
PATH_FIELDS = {"chunk_index", "file_index", "episode_chunk", "episode_index", "video_key"}


@dataclass(frozen=True)
class EpisodeFiles:
    """Where each episode lies.

    Args:
        paths: the distinct files, relative to the root.
        file: (E,) int64, position in `paths`.
        from_timestamp: (E,) float64, seconds at which the episode begins inside its file.
    """

    paths: tuple[str, ...]
    file: np.ndarray
    from_timestamp: np.ndarray

    def path(self, row: int) -> str:
        return self.paths[self.file[row]]


@dataclass(frozen=True)
class Dataset:
    """A dataset's metadata. Arrays have one entry per episode, in the order of episode_index.

    Args:
        root: location of the folder that holds meta/.
        name: for people.
        version: codebase_version, one of VERSIONS.
        fps: frames per second.
        features: info.json's features.
        episode_index: (E,) int64.
        length: (E,) int64, frames.
        from_index: (E,) int64, global index of the first frame.
        tasks: E tuples of task texts.
        data_files: the parquet files.
        videos: camera -> its mp4 files (image cameras are not in here: their frames lie in the data files).
        files: path relative to the root -> stamp, for everything that is there.
        notices: what was recovered from.
        repo_id, revision: set for a Hub dataset, whose files are fetched on demand.
    """

    root: str
    name: str
    version: str
    fps: float
    features: dict[str, dict]
    episode_index: np.ndarray
    length: np.ndarray
    from_index: np.ndarray
    tasks: tuple[tuple[str, ...], ...]
    data_files: EpisodeFiles
    videos: dict[str, EpisodeFiles]
    files: dict[str, str] = field(repr=False)
    notices: tuple[str, ...] = ()
    repo_id: str | None = None
    revision: str | None = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """Declared cameras."""
        return tuple(key for key, spec in self.features.items() if spec.get("dtype") in ("video", "image"))

    def is_video(self, camera: str) -> bool:
        return self.features[camera]["dtype"] == "video"

    def camera_files(self, camera: str) -> EpisodeFiles:
        """The files that hold a camera's frames."""
        return self.videos[camera] if self.is_video(camera) else self.data_files

    def location(self, path: str) -> str:
        return storage.join(self.root, path)


def open_dataset(name: str, revision: str | None = None) -> Dataset:
    """Read a dataset's metadata.

    Args:
        name: a local folder, an fsspec URL, hf://datasets/owner/name[@revision], or a Hub id (looked for in LeRobot's
            local folder first).
        revision: of a Hub dataset.

    Raises:
        DatasetError: not a dataset, an unknown version, malformed metadata, or a path that leaves the root.
        ConfigError: `revision` and the name's differ.
        StoreError: the store that holds it does not answer or refuses us.
    """
    repo_id, revision = hub.parse_dataset_uri(name, revision)
    if repo_id == name:
        if "://" in name or Path(name).expanduser().exists() or not hub.is_hub_id(name):
            root = storage.absolute(name)
            return _load(root, Path(root).name)
        local = hub.lerobot_home() / name
        if revision is None and (local / "meta" / "info.json").exists():
            return _load(str(local), name)
    return _load_from_hub(repo_id, revision)


def load_dataset(root: str, files: dict[str, str]) -> Dataset:
    """A dataset whose files have been listed: no look at what is there beside meta/. Errors of `open_dataset`.

    Args:
        root: location of the folder that holds meta/.
        files: path relative to it -> stamp.
    """
    return _load(root, root.rstrip("/").rsplit("/", 1)[-1], files)


def _load_from_hub(repo_id: str, revision: str | None) -> Dataset:
    snapshot = hub.download_from_hub(repo_id, ["meta/*", "meta/**"], revision, "dataset")
    commit = Path(snapshot).name  # the metadata's commit, so that a push meanwhile changes nothing
    if not hub.is_offline():
        return replace(_load(snapshot, repo_id, hub.list_repository(repo_id, commit)), repo_id=repo_id, revision=commit)
    dataset = _load(snapshot, repo_id, hub.list_snapshot(snapshot))
    notice = f"HF_HUB_OFFLINE is set: of {repo_id} at {commit[:8]} those files count that are on this machine"
    return replace(dataset, repo_id=repo_id, revision=commit, notices=(notice, *dataset.notices))


def fetch_files(dataset: Dataset, rows: np.ndarray, camera: str | None = None) -> None:
    """Bring a camera's files (or the data files) of some episodes of a Hub dataset to this machine; nothing for others."""
    if dataset.repo_id is None or not len(rows):
        return
    files = dataset.camera_files(camera) if camera else dataset.data_files
    there = sorted({files.path(row) for row in rows} & dataset.files.keys())
    if there:
        hub.download_from_hub(dataset.repo_id, there, dataset.revision, "dataset")


def _load(root: str, name: str, listing: dict[str, str] | None = None) -> Dataset:
    info = read_json(root, "meta/info.json")
    version, fps, features = info.get("codebase_version"), info.get("fps"), info.get("features")
    version = SAME_LAYOUT.get(version, version) if isinstance(version, str) else version
    if version not in VERSIONS:
        raise DatasetError(f"{root}/meta/info.json: codebase_version {version!r} is not one of {', '.join(VERSIONS)}")
    if not isinstance(fps, (int, float)) or not 0 < fps < 10_000:
        raise DatasetError(f"{root}/meta/info.json: fps must be a positive number, not {fps!r}")
    if not isinstance(features, dict):
        raise DatasetError(f"{root}/meta/info.json: features must be an object, not {type(features).__name__}")
    if not all(isinstance(spec, dict) for spec in features.values()):
        raise DatasetError(f"{root}/meta/info.json: every feature must be an object with dtype and shape")
    keys = [key for key, spec in features.items() if spec.get("dtype") == "video"]
    for template in ("data_path", "video_path") if keys else ("data_path",):
        if not isinstance(info.get(template), str):
            raise DatasetError(f"{root}/meta/info.json: {template} must be a path template, not {info.get(template)!r}")
    files = listing if listing is not None else _list_dataset(root, info)
    read = _read_v3 if version == "v3.0" else _read_v2
    try:
        table = read(root, info, keys, files)
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{root}/meta: malformed episode metadata ({type(error).__name__}: {error})") from error
    if not len(table["length"]):
        raise DatasetError(f"{root}: no episodes")
    numbers, counts = np.unique(table["episode_index"], return_counts=True)
    if (counts > 1).any():
        raise DatasetError(f"{root}/meta: episode {numbers[counts > 1][0]} is listed {counts.max()} times")
    if (table["length"] < 1).any():
        raise DatasetError(f"{root}: episode {table['episode_index'][table['length'] < 1][0]} has no frames")
    return Dataset(root=root, name=name, version=version, fps=float(fps), features=features, files=files, **table)


def _list_dataset(root: str, info: dict) -> dict[str, str]:
    """Everything in the folders that the path templates begin with."""
    templates = [info.get(name) for name in ("data_path", "video_path")]
    tops = {template.split("/", 1)[0] for template in templates if isinstance(template, str)}
    if any("{" in top for top in tops):
        return storage.list_files(root)
    return {
        f"{top}/{path}": stamp
        for top in sorted(tops - {"", "."})
        for path, stamp in storage.list_files(storage.join(root, top)).items()
    }


def _read_v3(root: str, info: dict, video_keys: list[str], files: dict[str, str]) -> dict[str, Any]:
    paths = sorted(
        path for path in storage.list_files(storage.join(root, "meta/episodes")) if path.endswith(".parquet")
    )
    if not paths:
        raise DatasetError(f"{root}: no episode table under meta/episodes")
    placed = ("chunk_index", "file_index", "from_timestamp")
    columns = ["episode_index", "tasks", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{key}/{part}" for key in video_keys for part in placed]
    tables = []
    for path in paths:
        location = storage.join(root, "meta/episodes", path)
        try:
            with storage.open_input(location) as stream:
                names = pq.read_schema(stream).names
                tables.append(pq.read_table(stream, columns=[name for name in columns if name in names]))
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{location}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    episodes = pa.concat_tables(tables, promote_options="permissive").combine_chunks().sort_by("episode_index")
    length = _int_column(episodes, "length")
    notices: list[str] = []

    def placement(prefix: str, template: str, key: str | None) -> EpisodeFiles:
        fields = {name: _int_column(episodes, f"{prefix}/{name}") for name in ("chunk_index", "file_index")}
        start = episodes[f"{prefix}/from_timestamp"].to_numpy() if key else np.zeros(len(length))
        return _episode_files(root, template, fields, key, start, files, notices)

    return {
        "episode_index": _int_column(episodes, "episode_index"),
        "length": length,
        "from_index": _int_column(episodes, "dataset_from_index"),
        "tasks": share_texts(episodes["tasks"]),
        "data_files": placement("data", info["data_path"], None),
        "videos": {
            key: placement(f"videos/{key}", info["video_path"], key)
            for key in video_keys
            if f"videos/{key}/chunk_index" in episodes.column_names
        },
        "notices": tuple(notices),
    }


def _read_v2(root: str, info: dict, video_keys: list[str], files: dict[str, str]) -> dict[str, Any]:
    episode_index, length, tasks = read_lines(root)
    chunks_size = int(info.get("chunks_size") or 1000)
    notices: list[str] = []

    def placement(template: str, key: str | None) -> EpisodeFiles:
        fields = {"episode_index": episode_index, "episode_chunk": episode_index // chunks_size}
        return _episode_files(root, template, fields, key, np.zeros(len(length)), files, notices)

    return {
        "episode_index": episode_index,
        "length": length,
        "from_index": np.cumsum(length) - length,
        "tasks": tasks,
        "data_files": placement(info["data_path"], None),
        "videos": {key: placement(info["video_path"], key) for key in video_keys},
        "notices": tuple(notices),
    }


def _episode_files(
    root: str,
    template: str,
    fields: dict[str, np.ndarray],
    key: str | None,
    start: np.ndarray,
    files: dict[str, str],
    notices: list[str],
) -> EpisodeFiles:
    """Resolve a path template for each episode; where it misses, take the one file of that name, and say so.

    Args:
        root: of the dataset, for messages.
        template: of info.json.
        fields: name in the template -> (E,) int64.
        key: its video_key; None for the data files.
        start: (E,) seconds, see EpisodeFiles.
        files: path -> stamp, what is there.
        notices: what was recovered from is added to it.
    """
    named = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    if not named <= PATH_FIELDS:
        unknown, known = name_list(sorted(named - PATH_FIELDS)), name_list(sorted(PATH_FIELDS))
        raise DatasetError(
            f"{root}/meta/info.json: path template {template!r} uses {unknown}; LeRobot's fields are {known}"
        )
    # Thousands of episodes may share a file: each distinct place is formatted and checked once.
    places, place = np.unique(np.stack(list(fields.values()), axis=1), axis=0, return_inverse=True)
    distinct = [
        _inside_root(root, template.format(**dict(zip(fields, values, strict=True)), video_key=key))
        for values in places.tolist()
    ]
    wanted = [distinct[number] for number in place.reshape(-1).tolist()]
    missing = [path for path in dict.fromkeys(wanted) if path not in files]
    found = _find_by_name(missing, set(wanted), files, template.split("/", 1)[0], key) if missing else {}
    if found:
        example = next(iter(found))
        notices.append(
            f"meta/info.json's path template {template!r} misses {len(found)} of {len(set(wanted))} files; "
            f"each was found by its name ({example} at {found[example]})"
        )
    resolved = [found.get(path, path) for path in wanted]
    paths = tuple(dict.fromkeys(resolved))
    position = {path: number for number, path in enumerate(paths)}
    return EpisodeFiles(
        paths, np.array([position[path] for path in resolved], dtype=np.int64), start.astype(np.float64)
    )


def _find_by_name(
    missing: list[str], own: set[str], files: dict[str, str], top: str, key: str | None
) -> dict[str, str]:
    """Missing path -> the one file of that name under `top` (and the camera `key`) that no other path claims.

    A file that the template gives to another episode (one in `own`) is not this one's.
    """
    by_name: dict[str, list[str]] = {}
    for path in files:
        if key is None or key in path.split("/"):
            by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)
    found = {}
    for path in missing:
        named_so = by_name.get(path.rsplit("/", 1)[-1], [])
        candidates = [c for c in named_so if c.startswith(f"{top}/") and c not in own]
        if len(candidates) == 1:
            found[path] = candidates[0]
    claims = Counter(found.values())
    return {path: place for path, place in found.items() if claims[place] == 1}


def _inside_root(root: str, path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or path.startswith(("/", "\\")) or ".." in parts or "\\" in path or ":" in parts[0]:
        raise DatasetError(f"{root}/meta/info.json: path {path!r} leaves the dataset's folder")
    return "/".join(parts)


def _int_column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy().astype(np.int64)
