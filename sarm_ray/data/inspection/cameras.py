"""Checks of the opened files with pictures: one list of findings per camera."""

from collections.abc import Sequence

import numpy as np

from sarm_ray.data.inspection.findings import CameraFacts, Finding, count, episode_list, leave_out
from sarm_ray.data.inspection.footage import Footage, is_black, is_frozen
from sarm_ray.data.inspection.metadata import declared_size, declared_video
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.video import TOLERANCE_FRAMES
from sarm_ray.errors import name_list

SLOW_SEEK = 60  # frames between keyframes
SAME_FPS = 1e-4  # relative
NEAR_FPS = 0.02


def camera_facts(dataset: Dataset, camera: str, size: np.ndarray, footage: Sequence[Footage]) -> CameraFacts:
    """What is declared and what was found of a camera, whose files have these sizes (F,)."""
    video = dataset.is_video(camera)
    opened = [each for each in footage if each.problem is None]
    declared = declared_size(dataset.features[camera]) or (None, None)
    first = opened[0] if opened else None
    intervals = [each.keyframe_interval for each in opened if each.keyframe_interval is not None]
    return CameraFacts(
        key=camera,
        kind="video" if video else "image",
        height=first.height if first else declared[0],
        width=first.width if first else declared[1],
        codec=first.codec if first else None,
        pix_fmt=first.pix_fmt if first else None,
        fps=first.fps if first else None,
        keyframe_interval=float(np.median(intervals)) if intervals else None,
        num_files=len(size),
        num_missing=int((size < 0).sum()),
        num_empty=int((size == 0).sum()),
        num_opened=len(footage),
        num_bytes=int(size[size > 0].sum()),
    )


def check_camera(dataset: Dataset, camera: str, footage: Sequence[Footage]) -> list[Finding]:
    """What the opened files of a camera lack. One `ok` where there is nothing to say and something was opened."""
    opened = [each for each in footage if each.problem is None and each.height is not None]
    findings = [
        *_check_readable(dataset, camera, footage),
        *_check_rate(dataset, camera, opened),
        *_check_times(dataset, camera, opened),
        *_check_pictures(dataset, camera, opened),
        *_check_declared(dataset, camera, opened),
    ]
    slow = [each for each in opened if (each.keyframe_interval or 0) > SLOW_SEEK]
    if slow:
        told = f"a keyframe every {slow[0].keyframe_interval:.0f} frames in {_files(slow, opened)}"
        action = (
            "score reads in order and does not mind; loaders that seek (LeRobot's) decode that many frames per sample"
        )
        findings.append(Finding(camera, "note", told, action))
    if opened and not any(finding.verdict in ("bad", "warn") for finding in findings):
        num_episodes = sum(len(each.spans) for each in opened)
        num_pictures = sum(len(shown) for each in opened for shown in each.pictures.values())
        told = f"{count(len(opened), 'file')} opened: "
        told += f"a frame for every row of {count(num_episodes, 'episode')}, "
        told += f"{count(num_pictures, 'picture')} neither black nor frozen"
        findings.append(Finding(camera, "ok", told))
    return findings


def _check_readable(dataset: Dataset, camera: str, footage: Sequence[Footage]) -> list[Finding]:
    findings = []
    unreadable = [each for each in footage if each.problem is not None]
    if unreadable:
        rows = _rows(unreadable)
        told = f"{unreadable[0].path}: {unreadable[0].problem} ({episode_list(dataset, rows)}"
        told += f"; {len(unreadable)} of {len(footage)} opened files cannot be read)" if len(unreadable) > 1 else ")"
        findings.append(Finding(camera, "bad", told, f"fetch or record again; else {leave_out(dataset, rows)}"))
    damaged = {row: (each, why) for each in footage for row, why in each.damaged.items()}
    if damaged:
        (row, (each, why)), rows = next(iter(damaged.items())), list(damaged)
        told = f"{each.path}: {why} ({episode_list(dataset, [row])}{_more(len(rows) - 1, 'episode')})"
        findings.append(Finding(camera, "bad", told, f"record again; else {leave_out(dataset, rows)}"))
    return findings


def _check_rate(dataset: Dataset, camera: str, opened: Sequence[Footage]) -> list[Finding]:
    rates = {each.path: each.fps for each in opened if each.fps is not None}
    off = {path: fps for path, fps in rates.items() if abs(fps / dataset.fps - 1) > SAME_FPS}
    if not off:
        return []
    path, fps = next(iter(off.items()))
    told = f"{path} plays at {fps:.5g} frames per second, the dataset at {dataset.fps:g}"
    told += f" ({len(off)} of {len(rates)} opened files)" if len(rates) > 1 else ""
    if abs(fps / dataset.fps - 1) > NEAR_FPS:
        action = "correct fps in meta/info.json or encode the video at it: frame k is looked for at k / fps seconds"
        return [Finding(camera, "bad" if fps < dataset.fps else "warn", told, action)]
    seconds = 0.5 / abs(fps - dataset.fps)
    action = f"rows drift from the picture by half a frame every {seconds:.0f} s; encode at the dataset's rate"
    return [Finding(camera, "warn", told, action)]


def _check_times(dataset: Dataset, camera: str, opened: Sequence[Footage]) -> list[Finding]:
    findings = []
    late = [each for each in opened if each.num_frames and each.start_s > TOLERANCE_FRAMES / dataset.fps]
    if late:
        told = f"{late[0].path} starts at {late[0].start_s:.3f} s instead of 0{_more(len(late) - 1, 'file')}"
        action = "rewrite its timestamps (ffmpeg -c copy -avoid_negative_ts make_zero); score refuses the file as it is"
        findings.append(Finding(camera, "bad", told, action))
    short = [each for each in opened if each.missing and each not in late]
    if short:
        each, rows = short[0], [row for e in short for row in e.missing]
        row, frames = next(iter(each.missing.items()))
        expected = sum(span.length for span in each.spans)
        lacking = sum(len(absent) for absent in each.missing.values())
        cut = f", cut short by {count(each.num_cut, 'frame')}" if each.num_cut else ""
        told = f"{each.path} holds {each.num_frames:,} frames for {expected:,} rows{cut}: "
        told += f"{count(lacking, 'row')} without a frame "
        told += f"(episode {dataset.episode_index[row]} from frame {frames[0]} on{_more(len(rows) - 1, 'episode')})"
        action = f"fetch or record again; score cannot score them (NaN), so else {leave_out(dataset, rows)}"
        findings.append(Finding(camera, "bad", told, action))
    surplus = [each for each in opened if each.num_frames > sum(s.length for s in each.spans) and not each.missing]
    if surplus:
        each = surplus[0]
        told = f"{each.path} holds {each.num_frames:,} frames for {sum(s.length for s in each.spans):,} rows"
        told += _more(len(surplus) - 1, "file")
        action = (
            "frames are found by their time, so the surplus is not used; check that none was inserted in the middle"
        )
        findings.append(Finding(camera, "note" if dataset.version == "v3.0" else "warn", told, action))
    return findings


def _check_pictures(dataset: Dataset, camera: str, opened: Sequence[Footage]) -> list[Finding]:
    findings = []
    shown = {row: (each, pictures) for each in opened for row, pictures in each.pictures.items()}
    black = [row for row, (_, pictures) in shown.items() if is_black(pictures)]
    frozen = [row for row, (_, pictures) in shown.items() if row not in black and is_frozen(pictures)]
    for what, rows in (("black", black), ("frozen: the same picture from beginning to end", frozen)):
        if rows:
            told = (
                f"{len(rows)} of {count(len(shown), 'episode')} looked at {'is' if len(rows) == 1 else 'are'} {what}: "
            )
            told += f"{episode_list(dataset, rows)} ({shown[rows[0]][0].path})"
            other = "choose another camera with --image-key" if len(rows) == len(shown) else leave_out(dataset, rows)
            findings.append(Finding(camera, "bad", told, f"record again; else {other}"))
    return findings


def _check_declared(dataset: Dataset, camera: str, opened: Sequence[Footage]) -> list[Finding]:
    spec = dataset.features[camera]
    declared = declared_video(spec)
    sizes = list(dict.fromkeys((each.height, each.width) for each in opened))
    wrong, size, codec = [], declared_size(spec), declared.get("video.codec")
    if len(sizes) > 1:
        shown = name_list([f"{width}x{height}" for height, width in sizes], 4)
        wrong.append(f"the opened files differ in size: {shown}")
    elif sizes and size and sizes[0] != size:
        wrong.append(f"the pictures are {sizes[0][1]}x{sizes[0][0]}, meta/info.json says {size[1]}x{size[0]}")
    codecs = list(dict.fromkeys(each.codec for each in opened))
    if isinstance(codec, str) and dataset.is_video(camera) and codecs and codecs != [_plain(codec)]:
        wrong.append(f"the codec is {name_list([c or '?' for c in codecs])}, meta/info.json says {codec}")
    action = "correct meta/info.json; score resizes whatever it gets"
    return [Finding(camera, "warn", "; ".join(wrong), action)] if wrong else []


def _plain(codec: str) -> str:
    """The name of a codec that encoders' names stand for."""
    known = {
        "libsvtav1": "av1",
        "libaom-av1": "av1",
        "libdav1d": "av1",
        "libx264": "h264",
        "avc1": "h264",
        "h265": "hevc",
    }
    return known.get(codec.lower(), codec.lower())


def _rows(footage: Sequence[Footage]) -> list[int]:
    return [span.row for each in footage for span in each.spans]


def _files(some: Sequence[Footage], opened: Sequence[Footage]) -> str:
    return "every opened file" if len(some) == len(opened) else f"{len(some)} of {count(len(opened), 'opened file')}"


def _more(number: int, noun: str) -> str:
    return f"; and {count(number, 'more ' + noun)}" if number > 0 else ""
