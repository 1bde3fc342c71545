"""An evaluation in words: a table of figures, and what they say about the model and the data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sarm_ray.console import duration
from sarm_ray.core.figures import Figure
from sarm_ray.core.rabc import RabcSummary, is_healthy

VIEWS = ("offline", "live", "time", "probe")
VIEW_TITLES = {"offline": "offline", "live": "live", "time": "time alone", "probe": "one frame, linear"}
LABELS = {
    "progress_mse": "progress MSE",
    "progress_mae": "progress MAE",
    "stage_accuracy": "stage accuracy",
    "boundary_error_s": "boundary error (s)",
    "delta_sign": "delta has the true sign",
    "delta_sign_falling": "  where progress falls",
    "drop_detection": "drops detected",
    "drop_f1": "  F1 with the falls that are none",
    "reversed_drop_detection": "drops detected, played backwards",
    "false_drawdowns": "false drawdowns",
    "jumps": "jumps from frame to frame",
    "voc": "VOC (blind, see README)",
    "progress_r2": "R2 with the target",
    "clock_r2": "R2 with the clock",
    "auroc": "AUROC of success against failure",
    "kendall_tau_b": "Kendall tau-b with the grade",
    "grade_spearman": "Spearman with the grade",
    "final_success": "final progress of successes",
    "final_partial": "final progress of partial ones",
    "final_failure": "final progress of failures",
    "failures_above_0.8": "failures scored above 0.8",
    "truncation_mean": "cut off: mean change of the score",
    "truncation_p95": "cut off: 95th percentile of it",
    "truncated_above_0.8": "cut off, yet scored above 0.8",
}
LABEL_WIDTH, CELL_WIDTH = 36, 25


@dataclass(frozen=True)
class HeadEvaluation:
    """What was found of one head.

    Args:
        figures: see `core/metrics.py`.
        rabc: what RA-BC would make of the offline progress at LeRobot's kappa.
        diagnosis: what stands out, and what to do about it.
    """

    figures: list[Figure]
    rabc: RabcSummary
    diagnosis: list[str]


@dataclass(frozen=True)
class EvaluateReport:
    """What a run found.

    Args:
        dataset, model, output: names and the file with all this in it.
        num_episodes, num_annotated, num_graded: that were looked at, have a truth for some head, have an outcome.
        heads: head -> what was found.
        failures: chunks that could not be read or scored, as rows of failed.parquet.
        notices: what the user should know of the inputs.
        seconds: wall time.
    """

    dataset: str
    model: str
    output: str
    num_episodes: int
    num_annotated: int
    num_graded: int
    heads: dict[str, HeadEvaluation]
    failures: list[dict]
    notices: tuple[str, ...]
    seconds: float


def figure_label(name: str) -> str:
    """A figure's name for people."""
    view, _, rest = name.partition("_")
    return f"{LABELS[rest].strip()}, {VIEW_TITLES[view]}" if view in VIEWS else LABELS[name]


def describe_figures(figures: Sequence[Figure]) -> list[str]:
    """The table: figures against the truth by view, then those of whole episodes."""
    by_name = {figure.name: figure for figure in figures}
    views = [view for view in VIEWS if any(name.startswith(f"{view}_") for name in by_name)]
    rows = [name for name in LABELS if any(f"{view}_{name}" in by_name for view in views)]
    lines = []
    if rows:
        lines.append(" " * LABEL_WIDTH + "".join(VIEW_TITLES[view].ljust(CELL_WIDTH) for view in views).rstrip())
    for row in rows:
        cells = [_cell(by_name.get(f"{view}_{row}")).ljust(CELL_WIDTH) for view in views]
        lines.append((LABELS[row].ljust(LABEL_WIDTH) + "".join(cells)).rstrip())
    whole = [name for name in LABELS if name in by_name]
    if whole:
        lines.append("")
    for name in whole:
        figure = by_name[name]
        count = f"{figure.num_episodes} episodes" if figure.num_episodes != 1 else "1 episode"
        lines.append((LABELS[name].ljust(LABEL_WIDTH) + _cell(figure).ljust(CELL_WIDTH) + count).rstrip())
    return lines


def _cell(figure: Figure | None) -> str:
    """`0.0071 (0.0052-0.0099)`; squared errors are small and get a digit more."""
    if figure is None or figure.value != figure.value:
        return "-"
    digits = 4 if figure.name.endswith("_mse") else 3
    if figure.low != figure.low:
        return f"{figure.value:.{digits}f}"
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f}-{figure.high:.{digits}f})"


def diagnose(figures: Sequence[Figure], rabc: RabcSummary, chunk_size: int) -> list[str]:
    """What stands out, in a practitioner's terms, and what to do about each; one line says so where nothing does."""
    value = {figure.name: figure.value for figure in figures}

    def above(name: str, bound: float) -> bool:
        return value.get(name, float("nan")) > bound

    def below(name: str, bound: float) -> bool:
        return value.get(name, float("nan")) < bound

    found = []
    clock, target = value.get("offline_clock_r2", float("nan")), value.get("offline_progress_r2", float("nan"))
    if clock > 0.9 and clock > target + 0.02:
        found.append(
            f"rises like a clock: progress follows time (R2 {clock:.2f}) more than the annotation ({target:.2f}). Train on "
            "stages (--annotation-mode dual), and on episodes that pause, fail and recover"
        )
    if below("offline_drop_detection", 0.8) or below("offline_reversed_drop_detection", 0.8):
        found.append(
            "misses drops: annotate episodes with a drop and its recovery, a quarter of the training set or more"
        )
    if above("offline_false_drawdowns", 0.15) or above("offline_jumps", 0.02):
        found.append(
            "jumps: progress falls or leaps on clean episodes. Train longer or on more episodes; stages that look alike "
            "in a single frame are better merged"
        )
    if below("offline_stage_accuracy", 0.8):
        found.append("confuses stages: check that they are annotated alike in all episodes (sarm-ray inspect)")
    if above("failures_above_0.8", 0.1) or below("auroc", 0.8):
        found.append("failures score high: add failed and recovered episodes to training, and grade with --labels")
    live = value.get("live_progress_mse", float("nan"))
    if above("truncated_above_0.8", 0.05) or live > 3 * value.get("offline_progress_mse", float("nan")) + 0.005:
        found.append(
            "reads too high at a live edge: the model has not seen a cut-off future. Train with "
            "--set augmentation.future_cut_probability=0.25, or with --window past"
        )
    if not is_healthy(rabc.mean_weight):
        share = "few frames get a weight" if rabc.mean_weight < 0.5 else "hardly a frame counts less"
        found.append(
            f"RA-BC at kappa {rabc.kappa:g} and chunk size {chunk_size}: {share} (mean weight {rabc.mean_weight:.2f}); "
            f"kappa {rabc.auto_kappa:.3g}, the 75th percentile, gives {rabc.auto_mean_weight:.2f}"
        )
    return found or ["nothing stands out"]


def evaluation_object(report: EvaluateReport) -> dict:
    """A report as JSON has it: figures as a flat list, null for what is no number."""
    figures = [
        {"head": head, "label": figure_label(figure.name), **_without_nan(asdict(figure))}
        for head, found in report.heads.items()
        for figure in found.figures
    ]
    whole = {
        name: getattr(report, name) for name in ("dataset", "model", "num_episodes", "num_annotated", "num_graded")
    }
    diagnosis = {head: found.diagnosis for head, found in report.heads.items()}
    return {
        **whole,
        "figures": figures,
        "diagnosis": diagnosis,
        "failures": report.failures,
        "notices": list(report.notices),
    }


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in values.items()}


def describe_evaluation(report: EvaluateReport) -> str:
    """What a person wants to know at the end."""
    lines = [
        report.output,
        f"  {report.num_episodes:,} episodes, {report.num_annotated:,} of them annotated, {report.num_graded:,} with an "
        f"outcome; 95 % intervals over episodes; {duration(report.seconds)}",
    ]
    for head, found in report.heads.items():
        lines += ["", f"{head} head", *(f"  {line}".rstrip() for line in describe_figures(found.figures)), ""]
        lines += [f"  {line}" for line in found.diagnosis]
    if report.failures:
        first = report.failures[0]
        lines += [
            "",
            f"{len(report.failures)} chunks failed; episode {first['episode_index']}, frames {first['start']} to "
            f"{first['stop'] - 1}: {first['message']}",
            f"all of them: {report.output}.run/failed.parquet",
        ]
    return "\n".join(lines)
