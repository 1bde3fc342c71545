"""`sarm-ray annotate --from`: segments that people or other tools have made, through the validation that a VLM's pass."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.core.questions import Question
from sarm_ray.core.subtasks import AnswerError, FrameSubtasks, Subtask, SubtaskRules, take_subtasks
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import read_proportions
from sarm_ray.data.frame_segments import LANGUAGE, REWARD, SUBTASK_INDEX, language_segments, reward_segments
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.segments import read_segments
from sarm_ray.errors import ConfigError, DatasetError, name_list
from sarm_ray.pipelines.annotate_plan import AnnotatePlan

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
    given = _read(plan.dataset, plan.rows, config, config.from_file)
    notices = list(plan.notices)
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
    failures: list[dict[str, Any]] = []
    for kind, own in given.items():
        labels = _labels(plan.dataset, kind, own, config)
        questions[kind] = Question(
            kind, labels, config.from_file, plan.cameras, 0.0, 0, 0, config.allow_repeats, config.allow_missing
        )
        found[kind] = {}
        for episode in sorted(own.keys() & selected):
            length = int(plan.dataset.length[number_of[episode]])
            rules = _rules(questions[kind], plan.dataset.fps, length)
            try:
                found[kind][episode] = take_subtasks(own[episode], rules)
            except AnswerError as error:
                failures.append(_failure(episode, kind, str(error)))
    if not any(found.values()):
        why = f"; episode {failures[0]['episode_index']}: {failures[0]['message']}" if failures else ""
        raise DatasetError(f"{config.from_file}: nothing in it can be taken{why}")
    wanted = {kind: np.isin(plan.dataset.episode_index[plan.rows], sorted(own)) for kind, own in given.items()}
    return replace(plan, questions=questions, wanted=wanted, notices=tuple(notices)), found, failures


def describe_import(plan: AnnotatePlan, source: str, found: Found, num_failures: int) -> list[str]:
    """Lines for the user: what will be written."""
    lines = [
        f"dataset   {plan.dataset.name}: {len(plan.rows):,} of {len(plan.dataset.length):,} episodes",
        f"from      {source}",
    ]
    for kind, question in plan.questions.items():
        lines.append(f"{kind:<9} {', '.join(question.labels)}: {len(found[kind]):,} episodes")
    refused = [f"refused   {num_failures:,} episodes, see failed.parquet"] if num_failures else []
    return [*lines, *refused, f"output    {plan.root}/meta, {plan.run_folder}"]


def _read(dataset: Dataset, rows: np.ndarray, config: AnnotateConfig, source: str) -> Given:
    """Segments by kind, episode and start. A source that is no file may be a column of the dataset."""
    kind = "dense" if config.dense and not config.sparse else "sparse"
    if source in (LANGUAGE, SUBTASK_INDEX, REWARD) and not storage.exists(storage.absolute(source)):
        if source != REWARD:
            return {kind: language_segments(dataset, rows)}
        stages = config.dense if kind == "dense" else config.sparse
        if not stages:
            raise ConfigError(
                "reward holds numbers of stages; name them in order with sparse_subtasks or dense_subtasks"
            )
        return {kind: reward_segments(dataset, rows, stages)}
    return read_segments(source, kind, dataset.fps)


def _labels(dataset: Dataset, kind: str, own: dict[int, list[Subtask]], config: AnnotateConfig) -> tuple[str, ...]:
    """The names in order: as told; else as the dataset already has them; else as most episodes have them."""
    told = config.sparse if kind == "sparse" else config.dense
    if told:
        return told
    names = {segment.name for segments in own.values() for segment in segments}
    known = read_proportions(dataset, kind)
    if known is not None and names <= set(known):
        return tuple(known)
    orders = Counter(tuple(dict.fromkeys(segment.name for segment in segments)) for segments in own.values())
    (usual, _), *others = orders.most_common()
    rest = [name for names, _ in others for name in names] if config.allow_missing else []
    return tuple(dict.fromkeys([*usual, *rest]))


def _rules(question: Question, fps: float, length: int) -> SubtaskRules:
    tolerance_s = max(TOLERANCE_S, 1 / fps)
    return SubtaskRules(question.labels, fps, length, tolerance_s, question.allow_repeats, question.allow_missing)


def _failure(episode: int, kind: str, message: str) -> dict[str, Any]:
    return {"episode_index": episode, "kind": kind, "error": "AnswerError", "message": message, "attempts": 0}
