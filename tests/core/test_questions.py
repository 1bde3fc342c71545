"""Which frames of an episode are shown, how large, and what is said about them."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import example, given

from sarm_ray.core.questions import (
    Question,
    answer_schema,
    correction,
    count_prompt_tokens,
    describe_episode,
    instructions,
    picture_size,
    question_frames,
    shown_step_s,
)

QUESTION = Question("toy", "sparse", ("reach", "grasp, lift"), "m", ("top", "wrist"), 1.0, 128, 150_000, True, True)


@given(
    length=st.integers(1, 20_000),
    fps=st.sampled_from([1.0, 10.0, 29.97, 30.0, 60.0]),
    rate=st.floats(0.05, 100),
    most=st.integers(2, 768),
)
@example(length=9000, fps=30.0, rate=1.0, most=128)
def test_the_frames_shown_are_even_and_few(length, fps, rate, most):
    frames = question_frames(length, fps, rate, most)
    assert frames[0] == 0
    assert frames[-1] == length - 1
    assert (np.diff(frames) > 0).all()
    assert len(frames) <= most
    step = max(fps / rate, (length - 1) / (most - 1), 1.0)
    assert np.diff(frames).max(initial=0) <= min(1.25 * step + 1, max(length - 1, 1))
    assert shown_step_s(frames, fps) == max(np.diff(frames).max(initial=1), 1) / fps


def test_one_a_second_and_the_last():
    assert question_frames(305, 30.0, 1.0, 128).tolist() == [0, 30, 60, 90, 120, 150, 180, 210, 240, 270, 304]
    assert question_frames(313, 30.0, 1.0, 128).tolist() == [0, 30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 312]
    assert question_frames(1, 30.0, 1.0, 128).tolist() == [0]


@given(
    shapes=st.lists(st.tuples(st.integers(8, 2000), st.integers(8, 2000)), min_size=1, max_size=4),
    pixels=st.integers(4096, 2**22),
)
def test_pictures_are_whole_tokens_of_one_height(shapes, pixels):
    sizes = picture_size(shapes, pixels)
    assert len(sizes) == len(shapes)
    assert len({height for height, _ in sizes}) == 1
    assert all(side % 32 == 0 and side > 0 for size in sizes for side in size)
    assert sum(height * width for height, width in sizes) <= max(pixels, 32 * 32 * len(shapes))
    assert sizes[0][0] <= max(min(height for height, _ in shapes), 32)


def test_pictures_of_cameras_that_people_have():
    assert picture_size([(480, 640)], 150_000) == [(320, 416)]
    assert picture_size([(800, 1280), (256, 256)], 150_000) == [(224, 352), (224, 224)]
    assert count_prompt_tokens(12, 320, 416) == 600 + 6 * (10 * 13 + 10)


def test_words():
    told = instructions(QUESTION)
    assert "1. reach\n2. grasp, lift\n" in told
    assert "Each frame shows 2 cameras side by side." in told
    assert "one may come again after a later one" in told
    assert "Leave out those that never happen." in told
    said = describe_episode("toy", 3, "push it", 9.6, [0.0, 1.0, 9.5])
    assert said == (
        "Episode 3 of toy. The task: push it. It lasts 00:09.6 (9.6 s). You see 3 frames, from 00:00.0 to 00:09.5. Where "
        "does each subtask begin and end?"
    )
    assert correction(["a", "b"]) == (
        "That answer cannot be taken:\n- a\n- b\nLook at the frames again and give the whole JSON anew."
    )
    names = answer_schema(QUESTION.labels)["properties"]["subtasks"]["items"]["properties"]["name"]
    assert names == {"type": "string", "enum": ["reach", "grasp, lift"]}


def test_another_question_has_another_key():
    assert QUESTION.key == Question(**vars_of(QUESTION)).key
    for name, value in {"dataset": "other", "labels": ("reach",), "model": "n", "max_frames": 64}.items():
        assert Question(**{**vars_of(QUESTION), name: value}).key != QUESTION.key


def vars_of(question: Question) -> dict:
    return {name: getattr(question, name) for name in Question.__dataclass_fields__}
