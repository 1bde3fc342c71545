"""Targets and training windows beside LeRobot's: which differ, all of them, and by what rule."""

import numpy as np
import pytest

from sarm_ray.core.augment import Augmentation, clean_slots, training_slots
from sarm_ray.core.frame_targets import stage_numbers
from sarm_ray.core.targets import (
    annotated_segments,
    completed_durations,
    episode_targets,
    temporal_proportions,
)
from sarm_ray.core.windows import Window
from sarm_ray.data.annotation_io import read_annotations

pytestmark = pytest.mark.parity
STAGES = {
    "sparse": ("approach", "push", "retract"),
    "dense": ("reach block", "align gripper", "push forward", "release", "go home"),
}


@pytest.fixture(scope="module")
def expected(fixtures):
    return np.load(fixtures / "expected" / "targets.npz")


@pytest.fixture(scope="module")
def annotations(dataset):
    return read_annotations(dataset)


def segments_of(annotations, head):
    kind = annotations[head]
    stage = stage_numbers(kind.stages, STAGES[head])[kind.stage]
    return annotated_segments(kind.offsets, stage, kind.start, kind.end)


@pytest.fixture(scope="module", params=["sparse", "dense"])
def head(request):
    return request.param


@pytest.fixture(scope="module")
def targets(dataset, annotations, head):
    """Stage (2050,) and tau (2050,) of all frames."""
    segments = segments_of(annotations, head)
    durations = completed_durations(segments, len(STAGES[head]))
    episodes = [episode_targets(segments, row, durations, int(length)) for row, length in enumerate(dataset.length)]
    return tuple(np.concatenate(parts) for parts in zip(*episodes, strict=True))


def combined(stage, tau, num_stages):
    """One number for stage and tau, as LeRobot makes it: the end of the last stage is 0.001 below K."""
    return np.where((stage >= num_stages - 1) & (tau >= 1), num_stages - 1 + 0.999, stage + tau)


def test_values_of_all_frames(targets, expected, head):
    stage, tau = targets
    num_stages, theirs = len(STAGES[head]), expected[f"center_{head}"]
    np.testing.assert_allclose(combined(stage, tau, num_stages), theirs, atol=1e-6)
    # without its 0.001: the frames from the last segment's end on, where there are such, and no other
    differs = np.abs(stage + tau - theirs) > 1e-6
    row, frame = expected["episode_index"], expected["frame_index"]
    last_end = np.array([300, 330, 360, 390, 300, 330])  # of episodes of 300, 330, 360, 400, 315, 345 frames
    assert np.array_equal(differs, frame >= last_end[row])
    assert np.bincount(row[differs], minlength=6).tolist() == [0, 0, 0, 10, 15, 15]
    assert (stage + tau)[differs].tolist() == [num_stages] * 40
    assert theirs[differs].tolist() == [np.float32(num_stages - 1 + 0.999)] * 40


def test_shared_boundary_frames(targets, annotations, dataset, expected, head):
    """LeRobot: stage k with tau 1. Ours: stage k + 1 with tau 0. The value, k + 1, is the same."""
    segments = segments_of(annotations, head)
    later = segments.start > 0
    shared = (dataset.from_index[segments.row] + segments.start)[later]
    assert len(shared) == 6 * (len(STAGES[head]) - 1)
    assert np.array_equal(segments.start[later], segments.end[:-1][later[1:]])  # shared indeed: there are no gaps
    stage, tau = targets
    assert np.array_equal(stage[shared], segments.stage[later])
    assert not tau[shared].any()
    assert np.array_equal(expected[f"center_{head}"][shared], segments.stage[later].astype(np.float32))
    starts = np.flatnonzero(tau == 0)  # no other frame has tau 0 but the first ones of episodes
    assert np.array_equal(starts, np.sort(np.concatenate([shared, dataset.from_index])))


def test_windows(targets, dataset, expected, head):
    """The first 9 slots are LeRobot's frames, clamped to the episode, and have its values."""
    row, index = expected["win_episode_index"], expected["win_index"]
    first = dataset.from_index[row]
    ours = clean_slots(index - first, dataset.length[row], Window())
    assert np.array_equal(ours.frames + first[:, None], expected["win_label_frames"][:, :9])
    stage, tau = (part[ours.frames + first[:, None]] for part in targets)
    np.testing.assert_allclose(combined(stage, tau, len(STAGES[head])), expected[f"win_{head}"][:, :9], atol=1e-6)


def test_rewinds_differ_on_purpose(dataset, expected):
    """LeRobot's labels walk back from 120 frames before the anchor, ours from the last frame of the window."""
    row, index, asked = expected["win_episode_index"], expected["win_index"], expected["win_rewind_requested"]
    frame, length = index - dataset.from_index[row], dataset.length[row]
    theirs = np.minimum(asked, np.maximum(frame - 120, 0) // 30)
    assert np.array_equal(theirs, expected["win_rewind_step"])
    labels = expected["win_label_frames"][:, 9:] - dataset.from_index[row][:, None]
    back, granted = 30 * np.arange(1, 5), np.arange(4) < theirs[:, None]
    assert np.array_equal(labels[granted], (frame[:, None] - 120 - back)[granted])

    last_shown = np.minimum(frame + 120, length - 1)
    room = np.minimum(4, last_shown // 30)
    drawn = [training_slots(frame, length, index, Window(), Augmentation(1, 4, 0, 0, 0), 0, e) for e in range(100)]
    steps = np.array([slots.lengths - 9 for slots in drawn])
    assert np.array_equal(steps.min(axis=0), np.ones(60))
    assert np.array_equal(steps.max(axis=0), room)
    assert (room >= theirs).all()  # there is more to walk back over
    for slots, own in zip(drawn, steps, strict=True):
        walked = np.arange(4) < own[:, None]
        assert np.array_equal(slots.frames[:, 9:][walked], (last_shown[:, None] - back)[walked])
    apart = last_shown[:, None] - back - labels  # the window's whole span: 240 frames, less near the episode's end
    assert np.array_equal(apart[granted], np.broadcast_to((last_shown - frame + 120)[:, None], (60, 4))[granted])


def test_proportions(annotations, head):
    """Where every episode has every stage once, formula (1) is LeRobot's."""
    shares = temporal_proportions(segments_of(annotations, head), STAGES[head])
    theirs = annotations[head].proportions
    np.testing.assert_allclose(shares, [theirs[name] for name in STAGES[head]], atol=1e-12)
