"""What an annotation run leaves: the dataset's metadata, segments as CSV, a page to check them by, pictures, a report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.config.visualize import VisualizeConfig
from sarm_ray.console import duration, tell
from sarm_ray.core.subtasks import FrameSubtasks, whole_task
from sarm_ray.data import storage
from sarm_ray.data.annotation_io import Annotations, annotation_of, read_annotations
from sarm_ray.data.annotation_journal import Journal
from sarm_ray.data.annotation_writer import write_annotations, write_proportions
from sarm_ray.data.failures import FAILED_FILE, QUESTIONS, read_failed, write_failed
from sarm_ray.data.progress_io import write_json
from sarm_ray.data.segments import annotated_subtasks, write_segments_csv
from sarm_ray.errors import SarmRayError
from sarm_ray.pipelines.annotate_episodes import Asking
from sarm_ray.pipelines.annotate_plan import TASK, AnnotatePlan
from sarm_ray.report.annotation_page import write_annotation_page
from sarm_ray.report.visualize import visualize

SEGMENTS_FILE, PAGE_FILE = "segments.csv", "annotations.html"
PICTURES_FOLDER = "pictures"
KINDS = ("sparse", "dense")
SHOWN_FAILURES = 5

Found = dict[str, dict[int, FrameSubtasks]]


@dataclass(frozen=True)
class AnnotateReport:
    """What a run did.

    Args:
        dataset, source, root, run_folder: what, as the user named it, and where.
        num_annotated: kind -> episodes that this run's answers, those of earlier runs and of the file annotate.
        num_uniform: of them, those whose subtasks are equally long.
        failures: episodes without an answer: episode_index, kind, error, message, attempts.
        num_asked, num_prompt_tokens, num_answer_tokens, seconds: of the asking in this run.
        notices: what the user should know of it.
    """

    dataset: str
    source: str
    root: str
    run_folder: str
    num_annotated: dict[str, int]
    num_uniform: int
    failures: list[dict[str, Any]]
    num_asked: int
    num_prompt_tokens: int
    num_answer_tokens: int
    seconds: float
    notices: tuple[str, ...]


def journalled_subtasks(plan: AnnotatePlan, journal: Journal) -> tuple[Found, dict[int, list[str]]]:
    """Subtasks of the selected episodes by kind and episode; and words on how they came about, by episode."""
    found: Found = {kind: {} for kind in plan.questions}
    notes: dict[int, list[str]] = {}
    for number, row in enumerate(plan.rows.tolist()):
        episode = int(plan.dataset.episode_index[row])
        for kind, question in plan.questions.items():
            if not plan.wanted[kind][number] or not plan.answered(journal, kind, episode, question):
                continue
            entry = journal[(kind, episode)]
            assert entry.subtasks is not None
            found[kind][episode] = entry.subtasks
            said = [f"{kind}: asked {len(entry.attempts)} times"] if len(entry.attempts) > 1 else []
            said += [f"{kind}: equal parts"] if entry.is_uniform else []
            if said:
                notes.setdefault(episode, []).extend(said)
    return found, notes


def write_output(
    plan: AnnotatePlan,
    config: AnnotateConfig,
    found: Found,
    notes: Mapping[int, Sequence[str]],
    failures: list[dict[str, Any]],
    asking: Asking,
    quiet: bool,
) -> AnnotateReport:
    """Write everything; the dataset's metadata first. Doing it again makes the same."""
    dataset = plan.dataset
    if plan.automatic.any():
        lengths = zip(dataset.episode_index[plan.rows], dataset.length[plan.rows], plan.automatic, strict=True)
        whole = {int(episode): whole_task(TASK, int(length)) for episode, length, automatic in lengths if automatic}
        found = {"sparse": whole, **found}
    write_annotations(dataset, found, plan.root)
    annotations = read_annotations(plan.annotated_dataset())
    stages = {kind: question.labels for kind, question in plan.questions.items()}
    stages |= {"sparse": (TASK,)} if plan.automatic.any() else {}
    notices: list[str] = []
    for kind, labels in stages.items():
        own = annotation_of(annotations, kind)
        if own is not None and own.annotated.any():  # by earlier runs too, whose proportions a crash may have cost
            notices += write_proportions(dataset, kind, labels, plan.root)
    failures = [*failures, *_still_unanswered(plan)]
    in_order = sorted(failures, key=lambda failure: (failure["episode_index"], failure["kind"]))
    write_failed(plan.run_folder, in_order, QUESTIONS)
    _export(plan, config, annotations)
    notices += _show(plan, config, annotations, found, notes, quiet)
    report = AnnotateReport(
        dataset=dataset.name,
        source=config.dataset,
        root=plan.root,
        run_folder=plan.run_folder,
        num_annotated={kind: len(own) for kind, own in found.items()},
        num_uniform=sum(any("equal parts" in said for said in own) for own in notes.values()),
        failures=failures,
        num_asked=asking.num_asked,
        num_prompt_tokens=asking.num_prompt_tokens,
        num_answer_tokens=asking.num_answer_tokens,
        seconds=asking.seconds,
        notices=tuple(notices),
    )
    write_json(storage.join(plan.run_folder, "summary.json"), asdict(report))
    return report


def draw_annotations(plan: AnnotatePlan, config: AnnotateConfig, quiet: bool, rows: np.ndarray | None = None) -> None:
    """Draw some episodes as LeRobot's tool does, into the pictures folder.

    Raises:
        SarmRayError: nothing could be drawn.
    """
    episodes = None if rows is None else ",".join(map(str, plan.dataset.episode_index[rows].tolist()))
    drawn = VisualizeConfig(
        dataset=config.dataset,
        type="annotations",
        visualize_type=config.visualize_type,
        num_visualizations=max(config.num_visualizations, 1),
        episodes=episodes or config.episodes,
        image_key=plan.cameras[0] if plan.cameras else None,
        output_dir=storage.join(plan.run_folder, PICTURES_FOLDER),
        revision=config.revision,
    )
    visualize(drawn, quiet or rows is not None, read_annotations(plan.annotated_dataset()))


def describe_report(report: AnnotateReport) -> str:
    """What a person wants to know at the end."""
    counts = ", ".join(f"{kind} {number:,}" for kind, number in report.num_annotated.items())
    failed = f"{len(report.failures):,} question{'s' * (len(report.failures) != 1)} failed"
    lines = [f"{report.root}/meta", f"  episodes annotated: {counts or 'none'}; {failed}"]
    if report.num_asked:
        rate = 60 * report.num_asked / max(report.seconds, 1e-9)
        tokens = f"{report.num_prompt_tokens:,} prompt and {report.num_answer_tokens:,} answer tokens"
        lines.append(f"  {report.num_asked:,} answers in {duration(report.seconds)} ({rate:.1f} a minute), {tokens}")
    if report.num_uniform:
        lines.append(f"  split into equal parts: {report.num_uniform:,}; look at them")
    lines += [
        f"  episode {failure['episode_index']} {failure['kind']}: {failure['message']}".replace(" :", ":")
        for failure in report.failures[:SHOWN_FAILURES]
    ]
    if len(report.failures) > SHOWN_FAILURES:
        lines.append(f"  and {len(report.failures) - SHOWN_FAILURES:,} more in {report.run_folder}/{FAILED_FILE}")
    lines.append(f"  look      {report.run_folder}/{PAGE_FILE}")
    lines.append(f"  correct   sarm-ray annotate {report.source} --from {report.run_folder}/{SEGMENTS_FILE}")
    return "\n".join(lines)


def _still_unanswered(plan: AnnotatePlan) -> list[dict[str, Any]]:
    """What an earlier run on other episodes or kinds left in failed.parquet."""
    selected = {int(plan.dataset.episode_index[row]) for row in plan.rows}
    before = read_failed(plan.run_folder, QUESTIONS)
    return [row for row in before if row["episode_index"] not in selected or row["kind"] not in plan.questions]


def _export(plan: AnnotatePlan, config: AnnotateConfig, annotations: dict[str, Annotations]) -> None:
    """All that is annotated as CSV; but never over a file that somebody has corrected and just imported."""
    location = storage.join(plan.run_folder, SEGMENTS_FILE)
    if config.from_file is not None and storage.absolute(config.from_file) == location:
        return
    kinds = {kind: own for kind in KINDS if (own := annotation_of(annotations, kind)) is not None}
    write_segments_csv(
        location, plan.dataset, {kind: annotated_subtasks(plan.dataset, own) for kind, own in kinds.items()}
    )


def _show(
    plan: AnnotatePlan,
    config: AnnotateConfig,
    annotations: dict[str, Annotations],
    found: Found,
    notes: Mapping[int, Sequence[str]],
    quiet: bool,
) -> list[str]:
    """The page and the pictures; why there are none is a notice, because the annotations are written by now."""
    episodes = {episode for own in found.values() for episode in own}
    rows = plan.rows[np.isin(plan.dataset.episode_index[plan.rows], sorted(episodes))]
    if not len(rows):
        return []
    page, camera = storage.join(plan.run_folder, PAGE_FILE), plan.cameras[0] if plan.cameras else None
    try:
        write_annotation_page(
            page,
            plan.dataset,
            rows,
            tuple(found),
            camera,
            notes=notes,
            source=config.dataset,
            quiet=True,
            annotations=annotations,
        )
        if config.num_visualizations:
            draw_annotations(plan, config, quiet, rows[: config.num_visualizations])
    except SarmRayError as error:
        notice = f"the annotations are written, but not all of them could be drawn: {error}"
        if not quiet:
            tell([notice])
        return [notice]
    return []
