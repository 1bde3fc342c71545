"""What a follower finds: where datasets lie and their outputs go, and what is to be scored of one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sarm_ray.config.score import ScoreConfig
from sarm_ray.data import hub, storage
from sarm_ray.data.dataset_folders import list_datasets
from sarm_ray.data.features import fingerprint_sources
from sarm_ray.data.lerobot import Dataset, load_dataset
from sarm_ray.data.progress_io import PROGRESS_FILE
from sarm_ray.data.progress_rows import ScoredEpisodes, read_scored_episodes
from sarm_ray.data.wholeness import unfinished_files, unfinished_totals
from sarm_ray.errors import ConfigError, DatasetError
from sarm_ray.pipelines.inputs import choose_cameras, choose_normalizer
from sarm_ray.pipelines.runtime import Cluster
from sarm_ray.pipelines.score_facts import (
    FINGERPRINT,
    STATISTICS,
    describe_inputs,
    describe_options,
    describe_statistics,
    fingerprint,
)
from sarm_ray.pipelines.score_plan import NO_EPISODES, ScoreModel, ScorePlan, ScoreTarget, plan_score


@dataclass(frozen=True)
class Folder:
    """A folder that is followed: what the user calls it, and where it is."""

    name: str
    location: str


@dataclass(frozen=True)
class Found:
    """A dataset in one of the folders.

    Args:
        name: what it is called on screen, `<folder>/<path in it>`.
        root: location.
        output: its progress file.
        files: path relative to the root -> stamp.
    """

    name: str
    root: str
    output: str
    files: dict[str, str]

    @property
    def run_folder(self) -> str:
        """Everything of its runs but the output."""
        return f"{self.output}.run"


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a dataset: score what is planned, or nothing.

    Args:
        plan: None where there is nothing to score, or not now.
        remark: what is special about it.
        waits_for: what it has to wait for, mostly the rest of it.
        unusable: why it is left alone as it is.
        output_stamp: of the output that was there, None where there was none.
    """

    plan: ScorePlan | None = None
    remark: str = ""
    waits_for: str = ""
    unusable: str = ""
    output_stamp: str | None = None


def open_folders(config: ScoreConfig) -> list[Folder]:
    """The folders that are given.

    Raises:
        ConfigError: no folder, or two of the same name.
        StoreError: the store does not answer or refuses us.
    """
    folders = []
    for given in config.datasets:
        location = storage.absolute(given)
        if given.startswith("hf://") or (storage.is_local(location) and not storage.is_folder(location)):
            hint = "; the Hub is not followed, download what is in it" if hub.is_hub_id(given) or "://" in given else ""
            raise ConfigError(
                f"{given}: no such folder; --follow takes folders that are there, local ones or URLs{hint}"
            )
        folders.append(Folder(location.rstrip("/").rsplit("/", 1)[-1], location))
    for folder in folders:
        same = [other.location for other in folders if other.name == folder.name]
        if len(same) > 1:
            raise ConfigError(f"{' and '.join(same)} have the same name, and so would their outputs; follow them apart")
    return folders


def find_datasets(folders: Sequence[Folder], config: ScoreConfig) -> dict[str, Found]:
    """All datasets in all folders: root -> dataset.

    Raises:
        StoreError: the store does not answer or refuses us.
        DatasetError: a folder is not there any more.
    """
    found: dict[str, Found] = {}
    for folder in folders:
        if storage.is_local(folder.location) and not storage.is_folder(folder.location):
            raise DatasetError(f"{folder.location} is not there any more")
        for path, files in list_datasets(folder.location).items():
            root = storage.join(folder.location, path) if path else folder.location
            name = f"{folder.name}/{path}" if path else folder.name
            output = _place_output(config, root, name if len(folders) > 1 else path, folder.name)
            found.setdefault(root, Found(name, root, output, files))
    return found


def _place_output(config: ScoreConfig, root: str, path: str, name: str) -> str:
    """Where a dataset's progress file goes; `path` is the dataset's, "" for a folder that is itself one, called `name`."""
    if config.output is not None:
        return storage.join(storage.absolute(config.output), *path.split("/" if path else None), PROGRESS_FILE)
    if storage.is_local(root) and storage.is_writable_folder(root):
        return storage.join(root, PROGRESS_FILE)
    return str(Path.cwd() / (path or name) / PROGRESS_FILE)


def examine(found: Found, config: ScoreConfig, model: ScoreModel, cluster: Cluster, sound: dict[str, str]) -> Verdict:
    """What is to be scored of a dataset now: what its output does not have, if all of that is there.

    Args:
        found: the dataset.
        config: of the follower.
        model: what scores it.
        cluster: where.
        sound: path -> stamp of its files that were found whole, which are not opened again; added to.

    Raises:
        CheckpointError, EncoderError: no dataset can be scored with these options.
        StoreError: the store does not answer or refuses us.
    """
    try:
        dataset = load_dataset(found.root, found.files)
    except DatasetError as error:
        return Verdict(waits_for=_shorten(error, found))
    try:
        return _examine(dataset, found, config, model, cluster, sound)
    except (DatasetError, ConfigError) as error:
        return Verdict(unusable=_shorten(error, found))


def _examine(
    dataset: Dataset, found: Found, config: ScoreConfig, model: ScoreModel, cluster: Cluster, sound: dict[str, str]
) -> Verdict:
    keys = choose_cameras(_as_if_whole(dataset), config.image_keys, model.checkpoint, [])
    stamp = _stamp_of(found.output)
    wanted = {
        **describe_options(config, model.checkpoint, model.encoder),
        **describe_inputs(config, keys, model.checkpoint, model.encoder, cluster),
    }
    record, remark = _read_record(found.output, wanted, config, model)
    todo, kept = _split_episodes(dataset, record, keys)
    if len(todo) and (reason := unfinished_totals(dataset)):
        return Verdict(waits_for=reason)
    if record is not None and _has_moved(dataset, record, config, model):
        remark = "all anew, by the statistics of the states that it has now"
        todo, kept = np.arange(len(dataset.length)), NO_EPISODES
    if len(todo) and (reason := unfinished_files(dataset, keys, todo, sound)):
        return Verdict(waits_for=reason)
    if not len(todo):
        return Verdict()
    chosen = replace(config, image_key=list(keys))
    plan = plan_score(chosen, ScoreTarget(dataset, found.output, todo, kept), model, cluster)
    return Verdict(plan, remark or (f"{len(kept):,} are scored already" if len(kept) else ""), output_stamp=stamp)


def _as_if_whole(dataset: Dataset) -> Dataset:
    """The same with all the files that it names: a camera is not chosen for being the first whose files came."""
    named = [dataset.data_files, *dataset.videos.values()]
    return replace(dataset, files={path: "" for files in named for path in files.paths})


def _read_record(
    output: str, wanted: dict[str, str], config: ScoreConfig, model: ScoreModel
) -> tuple[ScoredEpisodes | None, str]:
    """What the output that is there holds, None where it does not count; and what becomes of one that does not.

    Args:
        output: its place. wanted: its metadata, were it made now. config, model: of the follower.

    Raises:
        DatasetError: it is no progress file, or one of another model or other options, and may not be replaced.
    """
    try:
        record = read_scored_episodes(output)
        other = None if record is None else _difference(record, wanted, config, model)
    except DatasetError:
        if not config.overwrite:
            raise
        record, other = None, "not readable"
    if other and not config.overwrite:
        raise DatasetError(f"{output} is {other}; replace it with --overwrite")
    return (None, f"in place of an output that is {other}") if other else (record, "")


def _difference(record: ScoredEpisodes, wanted: dict[str, str], config: ScoreConfig, model: ScoreModel) -> str | None:
    """In what an output was made otherwise than it would be now. Outputs of earlier versions record less."""
    there = record.metadata
    by = "model_weights" if "model_weights" in there else "reward_model_path"
    if there.get(by) != wanted[by]:
        return f"by another model ({there.get('reward_model_path', 'unknown')})"
    if _place(there.get("encoder", "unknown")) != _place(wanted["encoder"]):
        return f"by another encoder ({there.get('encoder', 'unknown')})"
    for key in ("head_mode", "stride", "live"):
        if there.get(key) != wanted[key]:
            return f"of {key.replace('_', ' ')} {there.get(key, 'unknown')}, not {wanted[key]}"
    for key in ("cameras", "state_key", "task", "precision", "encoder_weights"):
        if there.get(key, wanted[key]) != wanted[key]:
            return f"of {key.replace('_', ' ')} {there[key] or 'none'}, not {wanted[key] or 'none'}"
    if STATISTICS in there:
        said = there[STATISTICS].partition("-")[0]
        own = model.checkpoint.normalizer if config.state_stats != "dataset" else None
        if said != ("checkpoint" if own else "dataset"):
            return f"by the statistics of the {said}, not those of the {'checkpoint' if own else 'dataset'}"
        if own and there[STATISTICS] != describe_statistics(own, said):
            return f"by other statistics of the checkpoint ({there.get('reward_model_path', 'unknown')})"
    if sorted(record.heads) != sorted(model.heads):
        return f"of other heads ({', '.join(record.heads)})"
    return None


def _place(name: str) -> str:
    """An encoder's name; a folder on this machine is the same under each of its paths."""
    return storage.absolute(name) if "://" not in name and storage.is_folder(storage.absolute(name)) else name


def _split_episodes(
    dataset: Dataset, record: ScoredEpisodes | None, keys: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to score, and those whose rows are kept: positions in the table, int64.

    One that failed is tried again where the files of the dataset are not those that its output was made from.
    """
    if record is None:
        return np.arange(len(dataset.length)), NO_EPISODES
    place = record.places(dataset.episode_index, dataset.from_index, dataset.length)
    there = place >= 0
    failed = there & (record.num_nan[np.maximum(place, 0)] > 0) if len(record.num_nan) else np.zeros_like(there)
    if failed.any():
        made_from = [fingerprint_sources(dataset, key) for key in keys]
        if fingerprint(dataset, np.flatnonzero(there), made_from) == record.metadata.get(FINGERPRINT):
            failed[:] = False
    return np.flatnonzero(~there | failed), np.flatnonzero(there & ~failed)


def _has_moved(dataset: Dataset, record: ScoredEpisodes, config: ScoreConfig, model: ScoreModel) -> bool:
    """Whether an output's states were normalised by other statistics: those of a dataset change when it grows."""
    key = config.state_key or model.checkpoint.config.state_key
    said = record.metadata.get(STATISTICS)
    return said is not None and said != describe_statistics(
        *choose_normalizer(config.state_stats, dataset, model.checkpoint, key, [])
    )


def _stamp_of(location: str) -> str | None:
    try:
        return storage.file_stamp(location)
    except FileNotFoundError:
        return None


def was_replaced(verdict: Verdict) -> bool:
    """Whether the output is not the one any more that a plan was made for."""
    return verdict.plan is not None and _stamp_of(verdict.plan.output) != verdict.output_stamp


def _shorten(error: Exception, found: Found) -> str:
    """What is wrong with a dataset, without the root that its name on screen says already."""
    text = str(error).removeprefix(f"{found.root}: ").replace(f"{found.root}/", "")
    return text.removeprefix(f"{found.root.rsplit('/', 1)[-1]}: ")
