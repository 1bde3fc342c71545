"""What happens in the demo's episodes: the world obeys the plan, the outcome is what the last frame shows."""

import itertools

import numpy as np
import pytest

from sarm_ray.demo.motion import FPS, STAGES, SUBTASKS, segments_of
from sarm_ray.demo.plans import OUTCOMES, Episode, plan_episode
from sarm_ray.demo.scene import BLOCK, PLATE, PLATE_HEIGHT

SEEDS = range(12)
STAGE_OF = dict(zip(SUBTASKS, (0, 0, 1, 2, 2, 3, 3, 3), strict=True))


def plan(kind: str, seed: int, tempo: float = 1.0) -> Episode:
    return plan_episode(kind, tempo, np.random.default_rng(seed))


def stages_of(episode: Episode) -> list[str]:
    return [segment.name for segment in segments_of(episode.motion.stages)]


def on_plate(episode: Episode) -> bool:
    x, y, z = episode.motion.block[-1]
    resting = abs(z - BLOCK / 2 - PLATE_HEIGHT) < 1e-9
    return bool(resting and np.hypot(x - episode.target[0], y - episode.target[1]) < PLATE / 2)


@pytest.mark.parametrize("kind", OUTCOMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_outcomes_are_what_the_last_frame_shows(kind, seed):
    episode = plan(kind, seed)
    motion = episode.motion
    assert on_plate(episode) == (episode.outcome == "success")
    if episode.outcome == "success":
        assert motion.opening[-1] == 1
        assert np.linalg.norm(motion.hand[-1] - motion.block[-1]) > BLOCK  # let go, and withdrawn
    elif kind != "stopped midway":
        assert motion.block[-1, 2] == pytest.approx(BLOCK / 2)  # on the table
        assert np.hypot(*(motion.block[-1, :2] - episode.target)) > PLATE


@pytest.mark.parametrize("kind", OUTCOMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_world_is_possible(kind, seed):
    motion = plan(kind, seed).motion
    assert (motion.block[:, 2] >= BLOCK / 2 - 1e-9).all()
    assert (np.abs(motion.block[:, 0]) < 0.2).all()  # in the picture
    assert ((motion.block[:, 1] > -0.05) & (motion.block[:, 1] < 0.22)).all()
    assert ((motion.opening >= 0) & (motion.opening <= 1)).all()
    assert np.linalg.norm(np.diff(motion.hand, axis=0), axis=1).max() * FPS < 0.6  # metres per second, at tempo 1
    rising = np.diff(motion.block[:, 2]) > 1e-9
    held = np.linalg.norm(motion.block - motion.hand, axis=1) < 0.02
    assert held[:-1][rising].all()  # a block does not rise by itself
    moving = np.linalg.norm(np.diff(motion.block, axis=0), axis=1) > 1e-9
    near = np.linalg.norm(motion.block - motion.hand, axis=1) < 0.16
    assert near[:-1][moving].all()  # nor move, unless pushed or just let fall


@pytest.mark.parametrize("kind", OUTCOMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_segments_cover_the_episode_and_subtasks_are_inside_their_stage(kind, seed):
    motion = plan(kind, seed).motion
    for names, known in ((motion.stages, STAGES), (motion.subtasks, SUBTASKS)):
        segments = segments_of(names)
        assert segments[0].start == 0
        assert segments[-1].end == len(motion) - 1
        assert all(a.end == b.start for a, b in itertools.pairwise(segments))
        assert all(segment.end > segment.start for segment in segments)
        assert {segment.name for segment in segments} <= set(known)
    assert [STAGES[STAGE_OF[name]] for name in motion.subtasks] == list(motion.stages)


@pytest.mark.parametrize("seed", SEEDS)
def test_each_kind_goes_through_its_stages(seed):
    whole = ["reach", "grasp", "carry", "place"]
    assert stages_of(plan("clean", seed)) == stages_of(plan("hesitation", seed)) == whole
    for kind in ("misgrasp", "empty carry"):
        assert stages_of(plan(kind, seed)) == ["reach", "grasp", *whole]
    dropped = stages_of(plan("drop", seed))
    assert dropped in (["reach", "grasp", "carry", *whole], [*whole, *whole])
    for kind in ("never grasps", "knocked away"):
        assert stages_of(plan(kind, seed)) == ["reach"]
    assert stages_of(plan("stopped midway", seed)) == whole[:3]
    assert stages_of(plan("left beside", seed))[-1] == stages_of(plan("dropped and idle", seed))[-1] == "reach"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_phantom_carry_is_a_success_but_for_the_block(seed):
    motion = plan("phantom carry", seed).motion
    assert stages_of(plan("phantom carry", seed)) == list(STAGES)
    assert (motion.block == motion.block[0]).all()


@pytest.mark.parametrize("kind", ["clean", "hesitation", "misgrasp", "empty carry", "drop"])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_done_rises_from_0_to_1_and_stands_still_while_the_hand_waits(kind, seed):
    motion = plan(kind, seed).motion
    segments = segments_of(motion.stages)
    for number, segment in enumerate(segments):
        done = motion.done[segment.start : segment.end]
        assert done[0] == 0
        assert (np.diff(done) >= 0).all()
        completed = number + 1 == len(segments) or STAGES.index(segments[number + 1].name) > STAGES.index(segment.name)
        if completed:
            assert done[-1] > 0.75  # the next frame would show 1
    assert motion.done[-1] == 1
    still = (np.diff(motion.done) == 0) & (np.array(motion.stages[1:]) == np.array(motion.stages[:-1]))
    waits = longest_run(still)
    assert waits >= 10 if kind == "hesitation" else kind != "clean" or waits <= 5


def longest_run(flags: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(flags.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return int(np.diff(edges).max(initial=0))


def test_the_tempo_is_that_of_the_moves():
    slow, fast = (np.mean([len(plan("clean", seed, tempo).motion) for seed in SEEDS]) for tempo in (0.72, 2.16))
    assert 2.4 < slow / fast < 3  # but for the waits, which take as long


def test_a_plan_is_a_function_of_its_seed():
    first, second, other = plan("drop", 3), plan("drop", 3), plan("drop", 4)
    for name in ("hand", "opening", "block", "yaw", "done"):
        np.testing.assert_array_equal(getattr(first.motion, name), getattr(second.motion, name))
    assert first.target == second.target != other.target
