"""`sarm-ray report`: a dataset and its progress in, one page out that opens anywhere, offline, on a phone.

progress file   -> curves, flags, RA-BC's sums        page_subject, page_data, flags, page_weights
annotation      -> stages and true progress           page_stages
videos          -> strips, small videos, dead cameras page_film, page_media
log of rollouts -> the same, without videos           page_rollouts
all of it       -> report.html (+ report.files/)      page_html
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sarm_ray.config.report import ReportConfig
from sarm_ray.console import size, tell
from sarm_ray.core.metrics import DONE
from sarm_ray.data import storage
from sarm_ray.data.rollout_log import is_rollout_log
from sarm_ray.report.flags import KINDS, Flag
from sarm_ray.report.page_data import DELTA_SCALE, NO_DELTA, NO_VALUE, PROGRESS_SCALE, Curves
from sarm_ray.report.page_html import assemble_page, number_or_none, packed
from sarm_ray.report.page_media import Media, choose_videos, filmed_object, folder_beside, media_object, remove_others
from sarm_ray.report.page_rollouts import open_rollouts
from sarm_ray.report.page_stages import NO_STAGE, Lanes
from sarm_ray.report.page_subject import Subject, open_scored_dataset


@dataclass(frozen=True)
class PageReport:
    """A page that was written.

    Args:
        output: where it is.
        num_bytes: its size.
        files: names in the folder beside it; none where everything is in the page.
        num_episodes, num_frames: that it is about.
        mean_final: mean final progress of the episodes whose end is scored; NaN where there is none.
        flagged: kind of flag -> episodes that have it.
        num_flagged: episodes with any flag.
        num_videos: episodes with a video.
        notices: what could not be shown.
        noun: what an episode is called.
    """

    output: str
    num_bytes: int
    files: tuple[str, ...]
    num_episodes: int
    num_frames: int
    mean_final: float
    flagged: dict[str, int]
    num_flagged: int
    num_videos: int
    notices: tuple[str, ...]
    noun: str = "episode"


def report(config: ReportConfig, quiet: bool = False) -> PageReport:
    """Write the page.

    Raises:
        OutputExistsError: it is there already, and may not be replaced.
        SarmRayError: bad input; nothing was written.
    """
    subject = open_rollouts(config) if is_rollout_log(config.dataset) else open_scored_dataset(config)
    notices, folder = list(subject.notices), folder_beside(subject.output)
    media, curves = _film(subject, config.max_videos, folder, notices, quiet)
    data = {
        "noun": subject.noun,
        "dataset": _dataset_object(subject),
        "progress": subject.source,
        "done": DONE,
        "kinds": [[kind, *texts] for kind, texts in KINDS.items()],
        "episodes": _episodes_object(subject, curves, media),
        "curves": _curves_object(curves, subject.lanes),
        "media": media_object(media),
        "weights": subject.weights,
        "evaluation": subject.evaluation,
        "notices": notices,
    }
    page = assemble_page(f"{subject.dataset.name}: progress", data, media.embedded)
    storage.write_file(subject.output, page)
    remove_others(folder, media.files)
    if not quiet:
        tell(notices)
    return _page_report(subject, page, media, curves, tuple(notices))


def describe_page(report: PageReport) -> str:
    """What was written, for people; the last line says where."""
    mean = f", mean final progress {report.mean_final:.2f}" if np.isfinite(report.mean_final) else ""
    lines = [f"{_many(report.num_episodes, report.noun)}, {_many(report.num_frames, 'frame')}{mean}"]
    kinds = [f"{number:,} {KINDS[kind][0]}" for kind, number in report.flagged.items()]
    verb = "is" if report.num_flagged == 1 else "are"
    flagged = f"{_many(report.num_flagged, report.noun)} {verb} flagged: {', '.join(kinds)}"
    lines.append(flagged if kinds else f"no {report.noun} is flagged")
    beside = f"; the page needs {Path(folder_beside(report.output)).name} beside it" if report.files else ""
    lines.append(f"{report.output} ({size(report.num_bytes)}, {_many(report.num_videos, 'video')}{beside})")
    return "\n".join(lines)


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _film(subject: Subject, max_videos: int, folder: str, notices: list[str], quiet: bool) -> tuple[Media, Curves]:
    """Pictures of all episodes, and the curves with all flags: their own, the subject's, and those that pictures give."""
    curves = subject.curves
    known = [(*curve, *others) for curve, others in zip(curves.flags, subject.flags, strict=True)]
    flagged = np.array([bool(flags) for flags in known])
    with_video = choose_videos(curves.final, flagged, max_videos)
    media = subject.film(np.argsort(curves.final, kind="stable"), with_video, folder, notices, quiet)
    flags = []
    for number, own in enumerate(known):
        kinds = [media.dead[number], "unreadable" if media.problem[number] else None]
        whole = [Flag(kind, 0, int(subject.dataset.length[curves.rows[number]])) for kind in kinds if kind]
        flags.append((*own, *whole))
    return media, replace(curves, flags=tuple(flags))


def _dataset_object(subject: Subject) -> dict[str, Any]:
    dataset = subject.dataset
    return {
        "name": dataset.name,
        "fps": dataset.fps,
        "camera": subject.camera,
        "num_episodes": len(dataset.length),
        "num_frames": int(dataset.length[subject.curves.rows].sum()),
    } | subject.about


def _episodes_object(subject: Subject, curves: Curves, media: Media) -> dict[str, Any]:
    """One list per property, an entry per episode."""
    kinds = {kind: number for number, kind in enumerate(KINDS)}
    return (
        subject.details
        | filmed_object(subject.dataset, curves.rows, media)
        | {
            "final": [number_or_none(value) for value in curves.final],
            "highest": [number_or_none(value) for value in curves.highest],
            "drawdown": [number_or_none(value) for value in curves.drawdown],
            "outcome": [number_or_none(value) for value in subject.outcomes[curves.rows]],
            "flags": [
                [[kinds[flag.kind], flag.start, flag.stop, round(flag.amount, 3)] for flag in flags]
                for flags in curves.flags
            ],
            "points": curves.num_points.tolist(),
        }
    )


def _curves_object(curves: Curves, lanes: Lanes) -> dict[str, Any]:
    return {
        "scale": PROGRESS_SCALE,
        "no_value": NO_VALUE,
        "delta_scale": DELTA_SCALE,
        "no_delta": NO_DELTA,
        "no_stage": NO_STAGE,
        "progress": packed(curves.progress),
        "deltas": packed(curves.deltas),
        "stages": lanes.names,
        "truth": packed(lanes.truth),
        "annotated": packed(lanes.annotated),
        "predicted": packed(lanes.predicted),
    }


def _page_report(subject: Subject, page: bytes, media: Media, curves: Curves, notices: tuple[str, ...]) -> PageReport:
    found = Counter(kind for flags in curves.flags for kind in {flag.kind for flag in flags})
    known = curves.final[np.isfinite(curves.final)]
    return PageReport(
        output=subject.output,
        num_bytes=len(page),
        files=media.files,
        num_episodes=len(curves.rows),
        num_frames=int(subject.dataset.length[curves.rows].sum()),
        mean_final=float(known.mean()) if len(known) else float("nan"),
        flagged={kind: found[kind] for kind in KINDS if found[kind]},
        num_flagged=sum(bool(flags) for flags in curves.flags),
        num_videos=sum(video is not None for video in media.video),
        notices=notices,
        noun=subject.noun,
    )
