"""Augmented windows: each sample against a slow definition, what holds for all of them, and how often each is changed."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarm_ray.core.augment import Augmentation, TrainingSlots, clean_slots, training_slots
from sarm_ray.core.draws import Stream, uniform
from sarm_ray.core.windows import Window, window_slots

NUM_SAMPLES = 20_000
CENTERED, DEFAULT = Window(), Augmentation()
NOTHING = Augmentation(0, 4, 0, 0, 0)
probabilities = st.sampled_from([0.0, 0.3, 0.8, 1.0])
augmentations = st.builds(Augmentation, probabilities, st.integers(0, 5), probabilities, probabilities, probabilities)
windows = st.builds(
    Window, st.sampled_from([2, 4, 8, 10]), st.integers(1, 40), st.sampled_from(["centered", "past"]), st.booleans()
)
batches = st.lists(
    st.tuples(st.integers(1, 400), st.integers(0, 399), st.integers(0, 10**9)), min_size=1, max_size=12
).map(
    lambda rows: (
        np.array([f % n for n, f, _ in rows]),
        np.array([n for n, _, _ in rows]),
        np.array([i for *_, i in rows]),
    )
)


def slow_sample(frame, length, index, window, augmentation, seed, epoch):
    """The definition, for one sample: frames of the valid slots."""

    def draw(stream):
        return float(uniform(seed, epoch, np.array([index]), stream)[0])

    n, gap = window.n_obs_steps, window.frame_gap
    slots = window_slots(np.array([frame]), int(length), window)[0].tolist()
    if window.kind == "centered" and draw(Stream.FUTURE_CUT) < augmentation.future_cut_probability:
        later = range(n // 2 + 1, n)
        at_edge = draw(Stream.FUTURE_CUT_AT_EDGE) < 0.5 or not later
        j = n // 2 if at_edge else later[int(draw(Stream.FUTURE_CUT_SLOT) * len(later))]
        slots[j:] = [slots[j]] * (n + 1 - j)
    if draw(Stream.PAST_CUT) < augmentation.past_cut_probability:
        j = int(draw(Stream.PAST_CUT_SLOT) * (n // 2 + 1))
        slots[:j] = [slots[j]] * j
    last, steps = slots[n], 0
    cap = min(augmentation.max_rewind_steps, last // gap)
    if cap and draw(Stream.REWIND) < augmentation.rewind_probability:
        steps = 1 + int(draw(Stream.REWIND_STEPS) * cap)
    return slots + [last - (i + 1) * gap for i in range(steps)]


@given(batches, windows, augmentations, st.integers(0, 9), st.integers(0, 9))
def test_samples_equal_the_definition(batch, window, augmentation, seed, epoch):
    slots = training_slots(*batch, window, augmentation, seed, epoch)
    num_slots = window.num_slots + augmentation.max_rewind_steps
    assert (slots.frames.shape, slots.frames.dtype) == ((len(batch[0]), num_slots), np.int64)
    assert (slots.lengths.dtype, slots.perturbed.dtype, slots.phrase.dtype) == (np.int64, np.bool_, np.float64)
    for row, sample in enumerate(zip(*batch, strict=True)):
        valid = slow_sample(*sample, window, augmentation, seed, epoch)
        assert slots.lengths[row] == len(valid)
        assert slots.frames[row].tolist() == valid + [valid[-1]] * (num_slots - len(valid))


@given(batches, windows, augmentations, st.integers(0, 9))
def test_what_holds_for_every_sample(batch, window, augmentation, seed):
    frame, length, _ = batch
    slots = training_slots(*batch, window, augmentation, seed, 0)
    assert (slots.frames >= 0).all()
    assert (slots.frames < length[:, None]).all()
    assert (slots.frames[:, window.readout_slot] == frame).all()  # no cut ever changes what is read out
    assert (np.diff(slots.frames[:, : window.num_slots], axis=1) >= 0).all()
    assert (np.diff(slots.frames[:, window.n_obs_steps :], axis=1) <= 0).all()
    assert (slots.lengths >= window.num_slots).all()
    assert (slots.lengths <= window.num_slots + augmentation.max_rewind_steps).all()
    assert ((slots.phrase >= 0) & (slots.phrase < 1)).all()
    step = np.diff(slots.frames[:, window.n_obs_steps :], axis=1)
    valid = np.arange(augmentation.max_rewind_steps) < (slots.lengths - window.num_slots)[:, None]
    assert (step == np.where(valid, -window.frame_gap, 0)).all()


@given(batches, windows, augmentations, st.randoms(), st.data())
def test_a_sample_does_not_depend_on_its_batch(batch, window, augmentation, random, data):
    together = training_slots(*batch, window, augmentation, 3, 1)
    order = np.array(random.sample(range(len(batch[0])), len(batch[0])))
    cut = data.draw(st.integers(0, len(order)))
    parts = [
        training_slots(*(part[rows] for part in batch), window, augmentation, 3, 1)
        for rows in (order[:cut], order[cut:])
    ]
    for name in ("frames", "lengths", "perturbed", "phrase"):
        apart = np.concatenate([getattr(part, name) for part in parts])
        assert apart.tolist() == getattr(together, name)[order].tolist()


@given(batches, windows)
def test_clean_samples_are_the_windows_of_scoring(batch, window):
    frame, length, index = batch
    clean = clean_slots(frame, length, window)
    assert clean.frames.tolist() == window_slots(frame, length, window).tolist()
    assert clean.lengths.tolist() == [window.num_slots] * len(frame)
    assert not clean.perturbed.any()
    assert not clean.phrase.any()
    same = training_slots(frame, length, index, window, replace(NOTHING, max_rewind_steps=0), 0, 0)
    assert same.frames.tolist() == clean.frames.tolist()
    assert (same.lengths == clean.lengths).all()
    assert not same.perturbed.any()


def many(augmentation=DEFAULT, window=CENTERED, seed=0, epoch=0) -> TrainingSlots:
    """Frame 1000 of an episode of 2000: nothing is clamped, all 4 rewind steps fit."""
    frame = np.full(NUM_SAMPLES, 1000)
    return training_slots(frame, 2000, np.arange(NUM_SAMPLES), window, augmentation, seed, epoch)


def assert_share(chosen, expected, of=None):
    """A share of `of` (all samples by default) within 5 standard deviations of what it should be."""
    total = len(chosen) if of is None else int(of.sum())
    deviation = (expected * (1 - expected) / total) ** 0.5
    assert abs(chosen.sum() / total - expected) <= 5 * deviation


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (17, 0)])
def test_how_often(seed, epoch):
    """Slots shown, from frames: 880 + 30 k is slot k."""
    slots = many(seed=seed, epoch=epoch)
    shown = (slots.frames[:, :9] - 880) // 30
    assert_share(slots.lengths > 9, 0.8)
    for steps in (1, 2, 3, 4):
        assert_share(slots.lengths == 9 + steps, 0.2)
    cut = shown[:, 8] < 8
    assert_share(cut, 0.25)
    assert_share(shown[:, 8] == 4, 0.5, of=cut)
    for j in (5, 6, 7):
        assert_share(shown[:, 8] == j, 1 / 6, of=cut)
    for j in (1, 2, 3, 4):  # a cut at slot 0 changes nothing
        assert_share(shown[:, 0] == j, 0.1 / 5)
    assert_share(shown[:, 0] > 0, 0.1 * 4 / 5)
    assert_share(slots.perturbed, 0.2)
    assert abs(slots.phrase.mean() - 0.5) < 5 / (12 * NUM_SAMPLES) ** 0.5


def test_coins_are_independent():
    slots = many()
    coins = [
        slots.lengths > 9,
        slots.frames[:, 8] < 1120,
        slots.frames[:, 0] > 880,
        slots.perturbed,
        slots.phrase < 0.5,
    ]
    for number, one in enumerate(coins):
        for other in coins[:number]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / NUM_SAMPLES**0.5
    both = coins[1] & coins[2]
    assert both.any()  # both cuts may happen to one sample


def test_cuts_by_hand():
    """Every window that is cut at both ends, of all that there can be."""
    slots = many(Augmentation(0, 0, 0, 1, 1))
    whole = list(range(880, 1121, 30))
    expected = set()
    for j in (4, 5, 6, 7):
        for k in (0, 1, 2, 3, 4):
            expected.add(tuple([whole[k]] * k + whole[k : j + 1] + [whole[j]] * (8 - j)))
    assert set(map(tuple, slots.frames.tolist())) == expected


def test_a_past_window_has_no_future_to_cut():
    window = Window(kind="past")
    slots = many(Augmentation(0, 0, 0, 1, 0), window)
    assert (slots.frames == [[0, *range(790, 1001, 30)]]).all()
    cut = many(Augmentation(0, 0, 0, 1, 1), window)
    assert {tuple(row) for row in cut.frames[:, :5].tolist()} == {
        (0, 790, 820, 850, 880),
        (790, 790, 820, 850, 880),
        (820, 820, 820, 850, 880),
        (850, 850, 850, 850, 880),
        (880, 880, 880, 880, 880),
    }
    assert (cut.frames[:, 8] == 1000).all()


def test_a_window_of_three_slots_is_cut_at_the_edge():
    slots = many(Augmentation(0, 0, 0, 1, 0), Window(n_obs_steps=2))
    assert (slots.frames == [[970, 1000, 1000]]).all()


def test_rewind_walks_back_from_the_last_frame_shown():
    rewind = Augmentation(1, 4, 0, 0, 0)
    slots = many(rewind)
    assert {tuple(row) for row in slots.frames[:, 8:].tolist()} == {
        (1120, 1090, 1090, 1090, 1090),
        (1120, 1090, 1060, 1060, 1060),
        (1120, 1090, 1060, 1030, 1030),
        (1120, 1090, 1060, 1030, 1000),
    }
    live = many(replace(rewind, future_cut_probability=1))
    at_edge = live.frames[:, 8] == 1000
    assert at_edge.any()
    assert set(live.frames[at_edge, 9].tolist()) == {970}


def test_rewind_stops_at_the_start_of_the_episode():
    """The last frame shown is 0, 29, 30, 59, 60, 200: there is room for 0, 0, 1, 1, 2 and 4 steps."""
    rewind, room = Augmentation(1, 4, 0, 0, 0), [0, 0, 1, 1, 2, 4]
    length = np.array([1, 30, 31, 60, 61, 201])
    granted = np.array(
        [training_slots(length - 1, length, np.arange(6), Window(), rewind, 0, e).lengths - 9 for e in range(200)]
    )
    assert granted.max(axis=0).tolist() == room
    assert granted.min(axis=0).tolist() == [min(cap, 1) for cap in room]


def test_a_live_window_is_cut_at_its_frame_already():
    slots = many(replace(NOTHING, future_cut_probability=0.5), Window(live=True))
    assert (slots.frames[:, :9] == [[880, 910, 940, 970, 1000, 1000, 1000, 1000, 1000]]).all()


def test_epochs_and_seeds_differ():
    first, again = many(), many()
    assert (first.frames == again.frames).all()
    for other in (many(epoch=1), many(seed=1)):
        assert (first.perturbed != other.perturbed).mean() == pytest.approx(0.32, abs=0.02)  # 2 x 0.2 x 0.8
        assert (first.frames != other.frames).any(axis=1).mean() > 0.5


@settings(max_examples=20)
@given(st.sampled_from(["rewind", "language_perturbation", "future_cut", "past_cut"]), st.floats())
def test_probabilities_are_checked(name, value):
    key = f"{name}_probability"
    if 0 <= value <= 1:
        assert getattr(Augmentation(**{key: value}), key) == value
    else:
        with pytest.raises(ValueError, match=f"^{re.escape(f'{key} must be between 0 and 1, not {value}')}$"):
            Augmentation(**{key: value})


def test_steps_are_checked():
    with pytest.raises(ValueError, match=r"^max_rewind_steps must be at least 0, not -1$"):
        Augmentation(max_rewind_steps=-1)
