"""Checks of what the episodes are called: task texts and subtask annotations."""

import unicodedata
from collections import Counter
from collections.abc import Callable

import numpy as np

from sarm_ray.data.annotation_io import Annotations
from sarm_ray.data.inspection.findings import (
    AnnotationFacts,
    Finding,
    TaskFacts,
    count,
    episode_list,
)
from sarm_ray.data.lerobot import Dataset
from sarm_ray.errors import name_list

MOST_FREQUENT = 10
LONG_TEXT = 300  # characters; CLIP reads 77 tokens, about four characters each
LATE_END_S = 1.0  # LeRobot's tool rounds to whole seconds


def task_facts(dataset: Dataset) -> TaskFacts:
    tasks = _task_texts(dataset)
    texts = Counter(text for names in tasks for text in names)
    without = sum(not _has_text(names) for names in tasks)
    return TaskFacts(len(texts), without, dict(texts.most_common(MOST_FREQUENT)))


def check_tasks(dataset: Dataset, table: dict[int, str]) -> list[Finding]:
    """Every episode has one text, it is in the table of tasks, and no two texts mean the same.

    Args:
        dataset: the dataset.
        table: task_index -> text; empty where there is no such table.
    """
    findings = []
    tasks = _task_texts(dataset)
    texts = Counter(text for names in tasks for text in names)
    without = [row for row, names in enumerate(tasks) if not _has_text(names)]
    if without:
        told = f"{count(len(without), 'episode')} without a task text: {episode_list(dataset, without)}"
        action = "write it into the episode table, or give one for all with --task TEXT; score refuses them otherwise"
        findings.append(Finding("tasks", "bad", told, action))
    alike = group_alike(texts)
    if alike:
        shown = "; ".join(" / ".join(f"{text!r} ({texts[text]:,})" for text in group) for group in alike[:3])
        more = f" and {len(alike) - 3} more" if len(alike) > 3 else ""
        told = f"texts that differ only in case, spaces or punctuation: {shown}{more}"
        findings.append(Finding("tasks", "warn", told, "make them one text: SARM sees each as a task of its own"))
    known = set(map(str, table.values()))
    unknown = [text for text in texts if text not in known] if table else []
    if unknown:
        told = (
            f"{count(len(unknown), 'text')} of episodes not in the table of tasks: {name_list(map(repr, unknown), 3)}"
        )
        action = "add to meta/tasks: LeRobot looks texts up by task_index; score takes the episode's own"
        findings.append(Finding("tasks", "warn", told, action))
    several = [row for row, names in enumerate(tasks) if len(names) > 1]
    if several:
        example = name_list(map(repr, tasks[several[0]]), 3)
        told = f"{count(len(several), 'episode')} with several texts, such as {example}"
        findings.append(
            Finding("tasks", "note", told, "score takes the text of an episode's first frame, by task_index")
        )
    long = [text for text in texts if len(text) > LONG_TEXT]
    if long:
        told = f"{count(len(long), 'text')} of more than {LONG_TEXT} characters, such as {long[0][:40]!r}..."
        findings.append(Finding("tasks", "note", told, "CLIP reads the first 77 tokens; put what matters first"))
    if not any(finding.verdict in ("bad", "warn") for finding in findings):
        told = f"{count(len(texts), 'text')}; every episode has one"
        told += ", and no two differ only in spelling" if len(texts) > 1 else ""
        findings.append(Finding("tasks", "ok", told))
    return findings


def group_alike(texts: Counter[str]) -> list[list[str]]:
    """Groups of texts that are equal but for case, spaces and punctuation; in each, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for text, _ in texts.most_common():
        plain = "".join(c if c.isalnum() else " " for c in unicodedata.normalize("NFKC", text).casefold())
        groups.setdefault(" ".join(plain.split()), []).append(text)
    return [group for plain, group in groups.items() if plain and len(group) > 1]


def annotation_facts(annotations: dict[str, Annotations]) -> tuple[AnnotationFacts, ...]:
    return tuple(AnnotationFacts(kind, int(a.annotated.sum()), a.stages) for kind, a in annotations.items())


def check_annotations(dataset: Dataset, annotations: dict[str, Annotations]) -> list[Finding]:
    """Coverage, names, order and bounds of each kind, and the proportions beside them."""
    kinds = {kind: a for kind, a in annotations.items() if kind != "unprefixed" or "sparse" not in annotations}
    if not any(a.annotated.any() or a.broken.any() for a in kinds.values()):
        told = "no episode has subtasks"
        action = "score and single_stage training need none; dense_only and dual training do"
        return [Finding("annotations", "note", told, action)]
    findings = [finding for a in kinds.values() for finding in _check_kind(dataset, a)]
    if "unprefixed" in kinds:
        action = "older LeRobot wrote it so; the present one reads these for both heads, so name them sparse_subtask_*"
        findings.append(Finding("annotations", "note", "subtasks without the prefix sparse_ or dense_", action))
    if {"sparse", "unprefixed"} <= set(annotations):
        sparse, plain = annotations["sparse"], annotations["unprefixed"]
        if not _same_segments(sparse, plain):
            told = "the columns subtask_* differ from sparse_subtask_*, of which they should be a copy"
            findings.append(
                Finding("annotations", "warn", told, "sparse_subtask_* count; write the others anew or drop them")
            )
    return findings


def _check_kind(dataset: Dataset, a: Annotations) -> list[Finding]:
    findings: list[Finding] = []

    def add(verdict: str, found: str, action: str = "") -> None:
        findings.append(Finding("annotations", verdict, f"{a.kind}: {found}", action))

    if a.broken.any():
        rows = np.flatnonzero(a.broken)
        add("bad", f"names without as many starts and ends in {episode_list(dataset, rows)}", "annotate them again")
    wrong = _wrong_bounds(dataset, a)
    for text, rows in wrong.items():
        add("bad", f"{text} in {episode_list(dataset, rows)}", "correct them: these frames get wrong targets")
    missing = np.flatnonzero(~a.annotated & ~a.broken)
    if len(missing):
        told = f"{a.annotated.sum():,} of {count(len(a.annotated), 'episode')} annotated; "
        told += f"not {episode_list(dataset, missing)}"
        add("warn", told, "annotate them, or training of that head leaves them out (LeRobot's takes them as stage 0)")
    sequences, counts, example = _sequences(a)
    if len(sequences) > 1:
        told = f"{len(sequences)} different sequences of names; most ({counts[0]:,}) have {' > '.join(sequences[0])}, "
        told += f"{episode_list(dataset, example[1:2])} has {' > '.join(sequences[1]) or 'none'}"
        add("warn", told, "check that the odd ones are meant: a stage is looked up by its name, in one global order")
    alike = group_alike(Counter(a.stages))
    if alike:
        shown = "; ".join(" / ".join(map(repr, group)) for group in alike[:3])
        told = f"names that differ only in case, spaces or punctuation: {shown}"
        add("bad", told, "make them one name: each counts as a stage of its own")
    _check_proportions(a, add)
    if not findings:
        add("ok", f"all {count(len(a.annotated), 'episode')}, {' > '.join(sequences[0])}; bounds in order and inside")
    return findings


def _wrong_bounds(dataset: Dataset, a: Annotations) -> dict[str, np.ndarray]:
    """What is wrong with the bounds -> rows (k,) of the episodes where it is."""
    row, length = a.row, dataset.length[a.row]
    same = row[1:] == row[:-1]
    late = length + LATE_END_S * dataset.fps
    return {
        text: np.unique(rows)
        for text, rows in {
            "subtasks that do not end after they start": row[a.end <= a.start],
            "subtasks that begin before the one ahead ends": row[1:][same & (a.start[1:] < a.end[:-1])],
            "subtasks outside the episode": row[(a.start < 0) | (a.start >= length) | (a.end > late)],
        }.items()
        if len(rows)
    }


def _sequences(a: Annotations) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """Of the annotated episodes: the distinct sequences of names, how often each, and the row of its first one; the most
    frequent first.
    """
    rows = np.flatnonzero(a.annotated)
    place = np.arange(len(a.stage)) - a.offsets[a.row]
    padded = np.full((len(a.annotated), int(place.max(initial=-1)) + 1), -1)
    padded[a.row, place] = a.stage
    distinct, first, counts = np.unique(padded[rows], axis=0, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names = [[a.stages[stage] for stage in sequence if stage >= 0] for sequence in distinct[order].tolist()]
    return names, counts[order], rows[first[order]]


def _check_proportions(a: Annotations, add: Callable[..., None]) -> None:
    path = f"meta/temporal_proportions_{'dense' if a.kind == 'dense' else 'sparse'}.json"
    if a.proportions is None:
        add(
            "warn",
            f"there is no {path}",
            "write it (name -> mean share of an episode): LeRobot's training refuses without",
        )
        return
    odd = sorted(set(a.stages) ^ set(a.proportions))
    shares = np.array(list(a.proportions.values()))
    if odd:
        told = f"{path} and the annotations do not have the same names: {name_list(map(repr, odd), 6)}"
        add("bad", told, "write the file anew: its keys are the stages, in their order")
    elif not np.isfinite(shares).all() or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-3:
        told = f"the shares in {path} are not positive or sum to {shares.sum():.3g}, not 1"
        add("warn", told, "write the file anew from the annotations")


def _same_segments(a: Annotations, b: Annotations) -> bool:
    if not (np.array_equal(a.offsets, b.offsets) and np.array_equal(a.start, b.start) and np.array_equal(a.end, b.end)):
        return False
    return [a.stages[s] for s in a.stage.tolist()] == [b.stages[s] for s in b.stage.tolist()]


def _task_texts(dataset: Dataset) -> list[tuple[str, ...]]:
    """The distinct texts of each episode, without what is no text."""
    return [tuple(dict.fromkeys(name for name in names if isinstance(name, str))) for names in dataset.tasks]


def _has_text(names: tuple[str, ...]) -> bool:
    return bool(names) and bool(names[0].strip())
