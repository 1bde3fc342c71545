"""`sarm-ray weights`: what RA-BC makes of a progress file, and the weight of every frame where a file of them is wanted.

The progress is read block by block and never held: once for the distribution of the deltas, and again for the weights,
which depend on it; not again where neither a file nor labels ask for them.
"""

import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sarm_ray.config.loading import dump_config
from sarm_ray.config.weights import WeightsConfig
from sarm_ray.core.rabc import (
    AUTO_SHARE,
    DeltaDistribution,
    DeltaHistogram,
    RabcSummary,
    grade_weights,
    progress_deltas,
    rabc_weights,
    summarize_weights,
)
from sarm_ray.data import hub, storage
from sarm_ray.data.outcomes import read_outcomes
from sarm_ray.data.progress_io import PROGRESS_FILE, read_progress_blocks, write_progress
from sarm_ray.data.rollout_log import is_rollout_log
from sarm_ray.errors import ConfigError, DatasetError, OutputExistsError
from sarm_ray.report.advice import (
    decimals,
    describe_health,
    describe_kappas,
    describe_summary,
    draw_histogram,
    lerobot_command,
    percent,
)

COLUMNS = [
    ("index", pa.int64()),
    ("episode_index", pa.int64()),
    ("frame_index", pa.int64()),
    ("delta", pa.float32()),
    ("weight", pa.float32()),
]
WITHOUT_LABELS = (
    "lerobot-train takes no labels: leave failures out with --dataset.episodes, or train with\n"
    "sarm_ray.sample_weighting. Without labels:"
)


@dataclass(frozen=True)
class GradedWeights:
    """RA-BC's weights times the grades of the episodes.

    Args:
        labels: the file of outcomes.
        num_success, num_failure, num_between: episodes of the progress file by grade: 1, 0, and those between.
        num_unlabelled: episodes of the progress file without a label, whose weights stay as they are.
        num_unknown: labels of episodes that the progress file does not have.
        mean_weight, share_zero, share_full: of all frames, as in RabcSummary.
    """

    labels: str
    num_success: int
    num_failure: int
    num_between: int
    num_unlabelled: int
    num_unknown: int
    mean_weight: float
    share_zero: float
    share_full: float


@dataclass(frozen=True)
class WeightsReport:
    """What RA-BC makes of a progress file.

    Args:
        progress: the file.
        others: further progress files of the dataset, which were not read.
        head_mode, chunk_size: as asked for.
        num_episodes: in the file.
        summary: of the weights, without labels.
        histogram: of the deltas.
        graded: the weights with labels; None without labels.
        output: the file of weights; None where none was written.
        command: what has lerobot-train use these weights (without the labels).
    """

    progress: str
    others: tuple[str, ...]
    head_mode: str
    chunk_size: int
    num_episodes: int
    summary: RabcSummary
    histogram: DeltaHistogram
    graded: GradedWeights | None
    output: str | None
    command: str


@dataclass
class _Tally:
    """Frames that were weighed: how many, the sum of their weights, those of 0, and those of 1 that have a delta."""

    num_frames: int = 0
    total: float = 0.0
    num_zero: int = 0
    num_full: int = 0

    def add(self, deltas: np.ndarray, weights: np.ndarray) -> None:
        self.num_frames += len(weights)
        self.total += float(weights.sum(dtype=np.float64))
        self.num_zero += int((weights == 0).sum())
        self.num_full += int(((weights == 1) & ~np.isnan(deltas)).sum())


def weights(config: WeightsConfig) -> WeightsReport:
    """Look the weights of a progress file over; write them, if there is an output.

    Raises:
        DatasetError: no progress file, or one that cannot be used; labels that cannot be used.
        ConfigError: an output that is the input, or a folder.
        OutputExistsError: the output is there, and it is not to be overwritten.
    """
    progress, *others = find_progress(config.dataset, config.revision)
    output = _place_output(config, progress) if config.output is not None else None
    grades = read_outcomes(config.labels) if config.labels is not None else None
    stamp = storage.file_stamp(progress)
    distribution, episodes = _measure(progress, config)
    if grades is not None and grades.keys().isdisjoint(episodes.tolist()):
        raise DatasetError(f"{config.labels}: none of the episodes of {progress} has a label")
    kappa = distribution.quantile(AUTO_SHARE) if config.kappa == "auto" else float(config.kappa)
    summary = summarize_weights(distribution, kappa)
    tally = _Tally()
    if output is not None or grades is not None:
        labels = None if config.labels is None else storage.absolute(config.labels)
        resolved = replace(config, dataset=progress, kappa=summary.kappa, labels=labels, output=output)
        tables = _weigh(resolved, distribution, grades, stamp, tally)
        if output is None:
            for _ in tables:
                pass
        else:
            storage.remove_temporaries(storage.parent(output))
            storage.write_file(storage.join(f"{output}.run", "config.yaml"), dump_config(resolved).encode())
            write_progress(output, lambda: tables, _schema(resolved))
    return WeightsReport(
        progress=progress,
        others=tuple(others),
        head_mode=config.head_mode,
        chunk_size=config.chunk_size,
        num_episodes=len(episodes),
        summary=summary,
        histogram=distribution.histogram(),
        graded=None if grades is None else _graded(str(config.labels), grades, episodes, tally),
        output=output,
        command=lerobot_command(progress, summary.kappa, config.head_mode),
    )


def find_progress(name: str, revision: str | None = None) -> list[str]:
    """The progress files that a name can mean, of which the first is meant.

    Args:
        name: the file itself, or the dataset that it belongs to, whose root has it; else it is where `score` puts that
            of a dataset which cannot be written, in ./<name>/.
        revision: of a Hub dataset.

    Raises:
        DatasetError: there is none.
        ConfigError: `revision` and the name's differ.
    """
    if is_rollout_log(name):
        raise DatasetError(
            f"{name} is a log of live rollouts: its frames are in no dataset that a policy could be trained on. Record them "
            "as a LeRobotDataset too, and `sarm-ray score` that; `sarm-ray report` shows the rollouts"
        )
    if name.endswith(".parquet") or Path(name).expanduser().is_file():
        location = storage.absolute(name)
        if not storage.exists(location) or storage.is_folder(location):
            raise DatasetError(f"{name}: no such file; give a progress file, or the dataset that it belongs to")
        return [location]
    repo_id, revision = hub.parse_dataset_uri(name, revision)
    base = storage.absolute(name) if repo_id == name else repo_id
    own = str(Path.cwd() / base.rsplit("/", 1)[-1] / PROGRESS_FILE)
    found = [own] if storage.exists(own) else []
    try:
        root = _dataset_root(name, repo_id, revision)
    except DatasetError:
        if not found:
            raise
        return found
    place = storage.join(root, PROGRESS_FILE)
    if place != own and storage.exists(place):
        found.insert(0, place)
    if not found:
        raise DatasetError(
            f"{name}: no {PROGRESS_FILE} in {root} nor in {storage.parent(own)}; make it with "
            f"`sarm-ray score {shlex.quote(name)} --model CHECKPOINT`"
        )
    return found


def _dataset_root(name: str, repo_id: str, revision: str | None) -> str:
    """The folder that would hold a dataset's progress file; of a Hub dataset the copy that is fetched of that file."""
    if repo_id == name:
        if "://" in name or Path(name).expanduser().exists():
            return storage.absolute(name)
        if not hub.is_hub_id(name):
            raise DatasetError(f"{name}: no such file or folder")
        local = hub.lerobot_home() / name
        if revision is None and (local / "meta" / "info.json").exists():
            return str(local)
    return hub.download_from_hub(repo_id, [PROGRESS_FILE], revision, "dataset")


def _place_output(config: WeightsConfig, progress: str) -> str:
    output = storage.absolute(str(config.output))
    if output == progress or (config.labels is not None and output == storage.absolute(config.labels)):
        raise ConfigError(f"{output} is what the weights are made from; choose another --output")
    if storage.is_folder(output):
        raise ConfigError(f"{output} is a folder; give --output a file, such as {output}/weights.parquet")
    if storage.exists(output) and not config.overwrite:
        raise OutputExistsError(f"{output} exists; replace it with --overwrite, or choose another --output")
    return output


def _measure(progress: str, config: WeightsConfig) -> tuple[DeltaDistribution, np.ndarray]:
    """The distribution of all deltas, and the episodes: (E,) int64."""
    distribution, episodes = DeltaDistribution(), [np.zeros(0, dtype=np.int64)]
    for block in read_progress_blocks(progress, config.head_mode):
        distribution.add(progress_deltas(block.progress, block.lengths, config.chunk_size))
        episodes.append(block.episode_index[np.cumsum(block.lengths) - 1])
    if not distribution.num_frames:
        raise DatasetError(f"{progress}: no rows")
    return distribution, np.concatenate(episodes)


def _weigh(
    config: WeightsConfig,
    distribution: DeltaDistribution,
    grades: dict[int, float] | None,
    stamp: str,
    tally: _Tally,
) -> Iterator[pa.Table]:
    """Tables of COLUMNS, block by block, counted in `tally`.

    Raises:
        DatasetError: the progress file is not the one any more that the distribution was taken from.
    """
    for block in read_progress_blocks(config.dataset, config.head_mode):
        deltas = progress_deltas(block.progress, block.lengths, config.chunk_size)
        weight = rabc_weights(deltas, distribution.mean, distribution.std, float(config.kappa))
        ends = np.cumsum(block.lengths)
        if grades is not None:
            weight = grade_weights(weight, block.episode_index[ends - 1], block.lengths, grades)
        tally.add(deltas, weight)
        frame = np.arange(len(weight)) - np.repeat(ends - block.lengths, block.lengths)
        columns = [block.index, block.episode_index, frame, deltas.astype(np.float32), weight]
        yield pa.table(columns, names=[name for name, _ in COLUMNS])
    if storage.file_stamp(config.dataset) != stamp:
        raise DatasetError(f"{config.dataset} was replaced while it was read; run the same command again")


def _schema(config: WeightsConfig) -> pa.Schema:
    facts = {
        "chunk_size": config.chunk_size,
        "kappa": decimals(float(config.kappa)),
        "head_mode": config.head_mode,
        "progress_path": config.dataset,
    }
    if config.labels is not None:
        facts["labels"] = config.labels
    return pa.schema(COLUMNS, metadata={key: str(value) for key, value in facts.items()})


def _graded(labels: str, grades: dict[int, float], episodes: np.ndarray, tally: _Tally) -> GradedWeights:
    known = [grades[episode] for episode in episodes.tolist() if episode in grades]
    return GradedWeights(
        labels=labels,
        num_success=known.count(1.0),
        num_failure=known.count(0.0),
        num_between=sum(0 < grade < 1 for grade in known),
        num_unlabelled=len(episodes) - len(known),
        num_unknown=len(grades) - len(known),
        mean_weight=tally.total / tally.num_frames,
        share_zero=tally.num_zero / tally.num_frames,
        share_full=tally.num_full / tally.num_frames,
    )


def report_object(report: WeightsReport) -> dict[str, Any]:
    """All of a report as one JSON object; there is no NaN in it."""
    return dataclasses.asdict(report) | {"is_healthy": report.summary.is_healthy}


def describe_weights(report: WeightsReport) -> str:
    """For people: the verdict, the deltas, what other kappas would give, and how to train with it."""
    summary = report.summary
    said = describe_summary(summary, report.head_mode, report.chunk_size)
    said += ["every frame has a delta, none is NaN"] if not summary.num_nan else []
    said[-1] += ", and so do we" if summary.num_nan else ""
    low, high = (summary.delta_mean + side * 2 * summary.delta_std for side in (-1, 1))
    floored = "" if summary.delta_mean else " (LeRobot takes 0 for a mean that is negative)"
    lines = [
        f"{report.progress}: {summary.num_frames:,} frames of {report.num_episodes:,} episodes",
        *(f"note: {other} is there too; to use it, give its path" for other in report.others),
        *said,
        "",
        f"progress made within {report.chunk_size} frames: mean {summary.delta_mean:.4f}{floored}, std "
        f"{summary.delta_std:.4f}",
        *draw_histogram(report.histogram, summary.kappa),
        "Frames below 0 weigh 0, those above kappa 1. Between them LeRobot's range of mean",
        f"-+ 2 std decides: the weight rises from 0 at {low:.4f} to 1 at {high:.4f}.",
        "",
        *describe_kappas(summary),
        "",
        *(_describe_graded(report.graded) if report.graded else []),
        *([f"{report.output}: {', '.join(name for name, _ in COLUMNS)}"] if report.output else []),
        "train with them:" if report.graded is None else WITHOUT_LABELS,
        f"  {report.command}",
    ]
    if not (storage.is_local(report.progress) or report.progress.startswith("hf://datasets/")):
        lines.append("  LeRobot opens local files and hf:// alone: copy the progress file, and give the copy's path")
    return "\n".join(lines)


def _describe_graded(graded: GradedWeights) -> list[str]:
    unknown = f"  labels of episodes that the progress file does not have: {graded.num_unknown:,}"
    return [
        f"{graded.labels}: weights are multiplied by the grade of their episode, success 1, failure 0",
        f"  episodes: {graded.num_success:,} success, {graded.num_failure:,} failure, {graded.num_between:,} between, "
        f"{graded.num_unlabelled:,} without a label, whose weights stay as they are",
        *([unknown] if graded.num_unknown else []),
        f"  with labels: mean weight {graded.mean_weight:.4f}, {percent(graded.share_zero)} of frames weigh 0, "
        f"{percent(graded.share_full)} weigh 1; {describe_health(graded.mean_weight)}",
        "",
    ]
