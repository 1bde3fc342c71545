"""An inspection on screen and as JSON."""

import dataclasses
import textwrap
from typing import Any

import click

from sarm_ray.console import size
from sarm_ray.data.inspection.findings import CameraFacts, Inspection, VectorFacts
from sarm_ray.errors import name_list

COLOURS = {"bad": "red", "warn": "yellow", "note": "cyan", "ok": "green"}
LABEL_WIDTH = 13
HANG = 6
LONGEST_TASK = 60


def describe_inspection(inspection: Inspection, width: int = 100) -> str:
    """The report: facts, then findings with what to do, the worst first. Coloured; click.echo takes colours out of a file.

    Args:
        inspection: of a dataset.
        width: columns, 80 or more.
    """
    lines = [line for label, text in _facts(inspection) for line in _row(label, text, width)]
    lines.append("")
    for finding in inspection.findings:
        found, *more = _wrap(f"{finding.topic}: {finding.found}", width - HANG)
        verdict = click.style(
            f"{finding.verdict:<{HANG}}", fg=COLOURS[finding.verdict], bold=finding.verdict == "bad" or None
        )
        topic = click.style(finding.topic, bold=True)
        lines += [f"{verdict}{topic}{found.removeprefix(finding.topic)}", *(" " * HANG + line for line in more)]
        for number, line in enumerate(_wrap(finding.action, width - HANG - 3) if finding.action else ()):
            lines.append(" " * HANG + ("   " if number else "-> ") + line)
    lines += ["", _summary(inspection)]
    return "\n".join(lines)


def inspection_object(inspection: Inspection) -> dict[str, Any]:
    """The same as one JSON object; there is no NaN in it."""
    return dataclasses.asdict(inspection) | {"num_bad": inspection.num_bad}


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    lengths, fps = inspection.lengths, inspection.fps
    robot = f", {inspection.robot_type}" if inspection.robot_type else ""
    facts = [
        ("dataset", f"{inspection.root} (LeRobot {inspection.version}, {fps:g} fps{robot})"),
        ("episodes", f"{inspection.num_episodes:,}, {inspection.num_frames:,} frames, {_hours(inspection.hours)}"),
        (
            "lengths",
            f"{lengths.minimum:,} to {lengths.maximum:,} frames ({lengths.minimum / fps:.1f} to "
            f"{lengths.maximum / fps:.1f} s), median {lengths.median:,.0f}, 90% within {lengths.p05:,.0f} to "
            f"{lengths.p95:,.0f}",
        ),
    ]
    facts += [(camera.kind, _camera(camera)) for camera in inspection.cameras]
    facts += [(_label(vector.key), _vector(vector)) for vector in inspection.vectors]
    tasks = inspection.tasks
    shown = [f'"{_cut(text)}" ({number:,})' for text, number in tasks.most_frequent.items()]
    more = f", {tasks.num_texts - 3:,} more" if tasks.num_texts > 3 else ""
    facts.append(("tasks", f"{', '.join(shown[:3])}{more}" if shown else "none"))
    kinds = {kind.kind: kind for kind in inspection.annotations}
    for kind in kinds.values():
        if kind.kind != "unprefixed" or "sparse" not in kinds:  # they are a copy of the sparse ones
            covered = f"{kind.num_episodes:,} of {_number(inspection.num_episodes, 'episode')}"
            facts.append((kind.kind, f"{covered}: {name_list(kind.stages)}"))
    if not inspection.annotations:
        facts.append(("annotations", "none"))
    sample = inspection.sample
    opened = f"{_number(sample.num_video_files, 'video file')}, {_number(sample.num_data_files, 'data file')}"
    if sample.episodes:
        episodes = name_list(map(str, sample.episodes), 24)
        text = f"{len(sample.episodes)} of {inspection.num_episodes:,} episodes ({episodes}): {opened} opened, "
        facts.append(("opened", f"{text}{_number(sample.num_frames, 'picture')} decoded"))
    else:
        facts.append(("opened", "nothing (--sample 0)"))
    return facts


def _label(key: str) -> str:
    return "state" if key.startswith("observation") else "action" if key.startswith("action") else "vector"


def _camera(camera: CameraFacts) -> str:
    resolution = f"{camera.width}x{camera.height}" if camera.width and camera.height else "size unknown"
    parts = [" ".join([resolution, *(part for part in (camera.codec, camera.pix_fmt) if part)])]
    if camera.keyframe_interval is not None:
        parts.append(f"keyframe every {camera.keyframe_interval:g}")
    parts.append(f"{_number(camera.num_files, 'file')}, {size(camera.num_bytes)}")
    parts += [f"{n:,} {what}" for n, what in ((camera.num_missing, "missing"), (camera.num_empty, "empty")) if n]
    return f"{camera.key}: {', '.join(parts)}"


def _vector(vector: VectorFacts) -> str:
    still = f", {len(vector.constant)} constant" if vector.constant else ""
    holes = f", {len(vector.not_finite)} with NaN" if vector.not_finite else ""
    return f"{vector.key}: {vector.width} wide, {vector.dtype}{still}{holes}"


def _row(label: str, text: str, width: int) -> list[str]:
    body = _wrap(text, width - LABEL_WIDTH)
    return [f"{label:<{LABEL_WIDTH}}{body[0]}", *(" " * LABEL_WIDTH + line for line in body[1:])]


def _wrap(text: str, width: int) -> list[str]:
    """Lines of whole words: a path stays in one piece, so that it can be copied."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _summary(inspection: Inspection) -> str:
    numbers = {v: sum(finding.verdict == v for finding in inspection.findings) for v in COLOURS}
    shown = [click.style(f"{number} {verdict}", fg=COLOURS[verdict]) for verdict, number in numbers.items() if number]
    return f"{', '.join(shown)}; {inspection.seconds['total']:.1f} s"


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TASK else f"{text[: LONGEST_TASK - 3]}..."


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.1f} seconds"
