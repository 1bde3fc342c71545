"""Selections, the chunk grid and bitmaps, against Python's own slicing and sets."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.episodes import (
    BITMAP_BYTES,
    CHUNK_FRAMES,
    chunk_keys,
    count_frames,
    frames_of,
    is_among,
    pack_frames,
    parse_selection,
    plan_chunks,
)

bound = st.none() | st.integers(-25, 25)
step = st.none() | st.integers(-4, 4).filter(bool)
slices = st.builds(slice, bound, bound, step)


def written(part: slice | int) -> str:
    if isinstance(part, int):
        return str(part)
    texts = ["" if value is None else str(value) for value in (part.start, part.stop, part.step)]
    return ":".join(texts[:2] if part.step is None else texts)


@given(st.lists(slices | st.integers(-12, 11), min_size=1, max_size=4))
def test_selection_of_whole_dataset_equals_list_slicing(parts):
    numbers = list(range(12))
    wanted = {number for part in parts for number in (numbers[part] if isinstance(part, slice) else [numbers[part]])}
    text = ",".join(written(part) for part in parts)
    if wanted:
        assert parse_selection(text, np.arange(12)).tolist() == sorted(wanted)
    else:
        with pytest.raises(ValueError, match=f"^episodes {re.escape(repr(text))} selects none of the 12 episodes$"):
            parse_selection(text, np.arange(12))


@given(st.sets(st.integers(0, 30), min_size=1), slices)
def test_slices_run_over_episode_numbers_and_pass_over_absent_ones(present, part):
    episode_index = np.array(sorted(present))
    wanted = set(list(range(max(present) + 1))[part]) & present
    if wanted:
        assert episode_index[parse_selection(written(part), episode_index)].tolist() == sorted(wanted)
    else:
        with pytest.raises(ValueError, match="selects none"):
            parse_selection(written(part), episode_index)


def test_selection_gives_positions_not_numbers():
    assert parse_selection("10:40, 70", np.array([3, 10, 30, 40, 70])).tolist() == [1, 2, 4]
    assert parse_selection("-1", np.array([3, 10, 30, 40, 70])).tolist() == [4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:10,x", "episodes '0:10,x': 'x' is not a number or a slice like 0:10"),
        ("1.5", "episodes '1.5': '1.5' is not a number or a slice like 0:10"),
        ("", "episodes '': '' is not a number or a slice like 0:10"),
        ("1,", "episodes '1,': '' is not a number or a slice like 0:10"),
        ("1:2:3:4", "episodes '1:2:3:4': '1:2:3:4' is not a number or a slice like 0:10"),
        ("0:5:0", "episodes '0:5:0': '0:5:0' is not a number or a slice like 0:10"),
        ("6", "episodes '6': there is no episode 6 (the last one is 5)"),
        ("-7", "episodes '-7': there is no episode -7 (the last one is 5)"),
        (str(10**20), f"episodes '{10**20}': there is no episode {10**20} (the last one is 5)"),
        ("3:3", "episodes '3:3' selects none of the 6 episodes"),
    ],
)
def test_selection_errors(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_selection(text, np.arange(6))


def test_a_single_absent_number_is_an_error():
    with pytest.raises(ValueError, match=r"^episodes '4': there is no episode 4 \(the last one is 5\)$"):
        parse_selection("4", np.array([0, 3, 5]))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 1500)), max_size=8))
def test_chunks_tile_each_episode_on_its_own_grid(episodes):
    rows = np.array([row for row, _ in episodes], dtype=np.int64)
    lengths = np.array([length for _, length in episodes], dtype=np.int64)
    chunks = plan_chunks(rows, lengths)
    expected = [
        (row, start, min(start + CHUNK_FRAMES, length))
        for row, length in episodes
        for start in range(0, length, CHUNK_FRAMES)
    ]
    assert list(zip(chunks.row.tolist(), chunks.start.tolist(), chunks.stop.tolist(), strict=True)) == expected
    assert len(chunks) == len(expected)
    assert chunks.row.dtype == chunks.start.dtype == chunks.stop.dtype == np.int64


@given(st.sets(st.tuples(st.integers(0, 10**6), st.integers(0, 2**23).map(lambda k: k * CHUNK_FRAMES)), max_size=20))
def test_chunk_keys_are_distinct_and_in_order(chunks):
    ordered = sorted(chunks)
    episode = np.array([episode for episode, _ in ordered], dtype=np.int64)
    start = np.array([start for _, start in ordered], dtype=np.int64)
    assert (np.diff(chunk_keys(episode, start)) > 0).all()


@given(st.integers(1, 900), st.sets(st.integers(0, 899)))
def test_bitmaps_round_trip(length, chosen):
    mask = np.zeros(length, dtype=bool)
    mask[[frame for frame in chosen if frame < length]] = True
    bitmaps = pack_frames(mask)
    assert bitmaps.shape == (-(-length // CHUNK_FRAMES), BITMAP_BYTES)
    assert bitmaps.dtype == np.uint8
    chunks = plan_chunks(np.array([0]), np.array([length]))
    frames = [frames_of(bitmap, start) for bitmap, start in zip(bitmaps, chunks.start, strict=True)]
    assert np.concatenate(frames).tolist() == np.flatnonzero(mask).tolist()
    assert [frames_of(b.tobytes(), int(s)).tolist() for b, s in zip(bitmaps, chunks.start, strict=True)] == [
        part.tolist() for part in frames
    ]
    assert count_frames(bitmaps).tolist() == [len(part) for part in frames]


def test_bitmaps_are_low_bit_first():
    mask = np.zeros(300, dtype=bool)
    mask[[0, 9, 255, 256]] = True
    first, second = pack_frames(mask)
    assert (first[0], first[1], first[31], second[0]) == (1, 2, 128, 1)
    assert frames_of(second, 256).tolist() == [256]


@given(st.lists(st.integers(-3, 12)), st.lists(st.integers(-3, 12)))
def test_which_keys_are_among_others(keys, others):
    keys, others = (np.array(numbers, dtype=np.int64) * 256 for numbers in (keys, others))
    np.testing.assert_array_equal(is_among(keys, others), np.isin(keys, others))
