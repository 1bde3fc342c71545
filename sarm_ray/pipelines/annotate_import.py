"""`sarm-ray annotate --from`: segments that people or other tools have made, through the validation that a VLM's pass."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.core.questions import Question
from sarm_ray.core.subtasks import AnswerError, FrameSubtasks, Subtask, SubtaskRules, take_subtasks
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import read_proportions
from sarm_ray.data.annotation_journal import Journal, by_hand
from sarm_ray.data.frame_segments import LANGUAGE, REWARD, SUBTASK_INDEX, language_segments, reward_segments
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.segments import read_segments
from sarm_ray.errors import ConfigError, DatasetError, name_list
from sarm_ray.pipelines.annotate_plan import AnnotatePlan

READERS = 16
TOLERANCE_S = 0.25  # people type tenths of a second

Given = dict[str, dict[int, list[Subtask]]]
Found = dict[str, dict[int, FrameSubtasks]]


def import_segments(plan: AnnotatePlan, config: AnnotateConfig) -> tuple[AnnotatePlan, Found, list[dict[str, Any]]]:
    """Read and check segments.

    Returns:
        The plan with the labels that were found; by kind and episode what can be taken; what cannot, as in failed.parquet.

    Raises:
        DatasetError: a file that cannot be read, episodes that the dataset does not have, or nothing at all to import.
        ConfigError: `reward` without the names of its stages.
    """
    assert config.from_file is not None
    notices = list(plan.notices)
    failures: list[dict[str, Any]] = []
    given = _read(plan, config, config.from_file, failures, notices)
    number_of = {int(episode): row for row, episode in enumerate(plan.dataset.episode_index)}
    selected = {int(plan.dataset.episode_index[row]) for row in plan.rows}
    strangers = sorted({episode for own in given.values() for episode in own} - number_of.keys())
    if strangers:
        raise DatasetError(
            f"{config.from_file}: {plan.dataset.name} has no episode {name_list(map(str, strangers), limit=5)}"
        )
    astray = {episode for own in given.values() for episode in own} - selected
    if astray:
        notices.append(
            f"{len(astray):,} episodes of {config.from_file} are not among the selected ones; they are left out"
        )
    questions: dict[str, Question] = {}
    found: Found = {}
    annotated = {kind: plan.annotated(kind) for kind in given}
    for kind, own in given.items():
        labels = _labels(plan.annotated_dataset(), kind, own, config)
        relaxed = {"allow_repeats": config.allow_repeats, "allow_missing": config.allow_missing}
        questions[kind] = Question(
            plan.dataset.name, kind, labels, config.from_file, plan.cameras, 0.0, 0, 0, **relaxed
        )
        found[kind] = {}
        for episode in sorted(own.keys() & selected):
            if config.skip_existing and annotated[kind][number_of[episode]]:
                continue
            length = int(plan.dataset.length[number_of[episode]])
            rules = _rules(questions[kind], plan.dataset.fps, length)
            try:
                found[kind][episode] = take_subtasks(own[episode], rules)
            except AnswerError as error:
                failures.append(_failure(episode, kind, str(error), "AnswerError"))
    if not any(found.values()) and not config.skip_existing:
        why = f"; episode {failures[0]['episode_index']}: {failures[0]['message']}" if failures else ""
        raise DatasetError(f"{config.from_file}: nothing in it can be taken{why}")
    wanted = {kind: np.isin(plan.dataset.episode_index[plan.rows], sorted(own)) for kind, own in given.items()}
    return replace(plan, questions=questions, wanted=wanted, notices=tuple(notices)), found, failures


def given_by_hand(plan: AnnotatePlan, found: Found) -> Journal:
    """Entries of the journal, so that a VLM's earlier answers do not come back over what was imported."""
    lengths = dict(zip(plan.dataset.episode_index.tolist(), plan.dataset.length.tolist(), strict=True))
    return {
        (kind, episode): by_hand(episode, kind, lengths[episode], subtasks)
        for kind, own in found.items()
        for episode, subtasks in own.items()
    }


def describe_import(plan: AnnotatePlan, source: str, found: Found, num_failures: int) -> list[str]:
    """Lines for the user: what will be written."""
    lines = [
        f"dataset   {plan.dataset.name}: {len(plan.rows):,} of {len(plan.dataset.length):,} episodes",
        f"from      {source}",
    ]
    for kind, question in plan.questions.items():
        lines.append(f"{kind:<9} {', '.join(question.labels)}: {len(found[kind]):,} episodes")
    episodes = f"{num_failures:,} episode{'s' * (num_failures != 1)}"
    refused = [f"refused   {episodes}, see failed.parquet"] if num_failures else []
    return [*lines, *refused, f"output    {plan.root}/meta, {plan.run_folder}"]


def _read(
    plan: AnnotatePlan, config: AnnotateConfig, source: str, failures: list[dict[str, Any]], notices: list[str]
) -> Given:
    """Segments by kind, episode and start. A source that is no file may be a column of the dataset."""
    kind = "dense" if config.dense and not config.sparse else "sparse"
    if source not in (LANGUAGE, SUBTASK_INDEX, REWARD) or storage.exists(storage.absolute(source)):
        return read_segments(source, kind, plan.dataset.fps)
    stages = config.dense if kind == "dense" else config.sparse
    if source == REWARD and not stages:
        raise ConfigError("reward holds numbers of stages; name them in order with sparse_subtasks or dense_subtasks")

    def read(row: int) -> dict[int, list[Subtask]] | DatasetError:
        try:
            rows = np.array([row])
            return (
                reward_segments(plan.dataset, rows, stages)
                if source == REWARD
                else language_segments(plan.dataset, rows)
            )
        except DatasetError as error:
            return error

    given: dict[int, list[Subtask]] = {}
    num_empty = 0
    with ThreadPoolExecutor(READERS) as pool:  # mostly waiting for files
        for row, own in zip(plan.rows.tolist(), pool.map(read, plan.rows.tolist()), strict=True):
            if isinstance(own, DatasetError):
                failures.append(_failure(int(plan.dataset.episode_index[row]), kind, str(own), "DatasetError"))
            else:
                given |= own
                num_empty += not own
    if num_empty:
        notices.append(f"{num_empty:,} episodes have no subtasks in {source}; they are left as they are")
    return {kind: given}


def _labels(dataset: Dataset, kind: str, own: dict[int, list[Subtask]], config: AnnotateConfig) -> tuple[str, ...]:
    """The names in order: as told; else as the dataset already has them; else as most episodes have them."""
    told = config.sparse if kind == "sparse" else config.dense
    if told:
        return told
    names = {segment.name for segments in own.values() for segment in segments}
    known = read_proportions(dataset, kind)
    if known is not None and names <= set(known):
        return tuple(known)
    if not own:
        return ()
    orders = Counter(tuple(dict.fromkeys(segment.name for segment in segments)) for segments in own.values())
    (usual, _), *others = orders.most_common()
    rest = [name for names, _ in others for name in names] if config.allow_missing else []
    return tuple(dict.fromkeys([*usual, *rest]))


def _rules(question: Question, fps: float, length: int) -> SubtaskRules:
    tolerance_s = max(TOLERANCE_S, 1 / fps)
    return SubtaskRules(question.labels, fps, length, tolerance_s, question.allow_repeats, question.allow_missing)


def _failure(episode: int, kind: str, message: str, error: str) -> dict[str, Any]:
    return {"episode_index": episode, "kind": kind, "error": error, "message": message, "attempts": 0}
