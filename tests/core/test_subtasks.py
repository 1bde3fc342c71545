"""Answers about subtasks: what is read, what is refused and in which words, and the frames that come out."""

import itertools
import json
import math
import pickle
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sarm_ray.core.subtasks import (
    MAX_ANSWER_CHARS,
    MAX_OBJECTIONS,
    MAX_SUBTASKS,
    AnswerError,
    FrameSubtasks,
    Subtask,
    SubtaskRules,
    check_subtasks,
    clock,
    is_uniform_split,
    parse_answer,
    parse_time,
    snap_subtasks,
    take_subtasks,
    whole_task,
)
from sarm_ray.errors import nearest

LABELS = ("reach", "grasp", "lift", "place")
RULES = SubtaskRules(LABELS, fps=10, length=200, tolerance_s=1.0)
VALID = (Subtask("reach", 0, 5), Subtask("grasp", 5, 9), Subtask("lift", 9, 14), Subtask("place", 14, 20))
NO_JSON = 'there is no complete and valid JSON object {"subtasks": [...]} in the answer'

names = st.text(min_size=1, max_size=12).map(str.strip).filter(bool)


@st.composite
def segmentations(draw, min_labels=1, min_seconds=0):
    """Rules, and where subtasks that obey them begin and end, in tenths of a second or whole seconds."""
    labels = tuple(draw(st.lists(names, min_size=min_labels, max_size=5, unique=True)))
    fps = draw(st.integers(1, 60))
    unit = draw(st.sampled_from([1, 10]))
    shortest = max(math.ceil(10 / fps), 10 * min_seconds)  # one frame
    durations = draw(
        st.lists(st.integers(math.ceil(shortest / unit), 3000), min_size=len(labels), max_size=len(labels))
    )
    tenths = [0]
    for duration in durations:
        tenths.append(tenths[-1] + unit * duration)
    length = -(-tenths[-1] * fps // 10)
    return SubtaskRules(labels, fps, length, tolerance_s=1.0), tenths


def subtasks_of(rules, tenths):
    return [
        Subtask(name, start / 10, end / 10) for name, start, end in zip(rules.labels, tenths, tenths[1:], strict=False)
    ]


def with_colons(tenths, hours):
    minutes = f"{tenths // 36000:02d}:{tenths // 600 % 60:02d}" if hours else f"{tenths // 600:02d}"
    return f"{minutes}:{tenths // 10 % 60:02d}" + (f".{tenths % 10}" if tenths % 10 else "")


WRITE_TIME = {
    "number": lambda tenths: tenths / 10,
    "SS.s": lambda tenths: str(tenths / 10),
    "MM:SS": lambda tenths: with_colons(tenths, hours=False),
    "MM:SS.s": lambda tenths: clock(tenths / 10),
    "HH:MM:SS": lambda tenths: with_colons(tenths, hours=True),
    "spaces": lambda tenths: f" {clock(tenths / 10)}\n",
}
DRAFT = '{"subtasks": [{"name": "draft", "start": 0, "end": 1}]}'
WRITE_ANSWER = {
    "bare": '{{"subtasks": {listed}}}',
    "fence": '```json\n{{"subtasks": {listed}}}\n```',
    "fence without a language": '```\n{{"subtasks": {listed}}}```',
    "prose": 'Timeline: [00:01] a {{grasp}}, "x" [1].\n\n{{"why": "[{{", "subtasks": {listed}}}\nDone [] {{}} [{{"a": 1}}]',
    "after a draft": f'```json\n{DRAFT.replace("{", "{{").replace("}", "}}")}\n```\nNo: {{{{"subtasks": {{listed}}}}}}',
    "list": "```json\n{listed}\n```",
    "cut off after the list": '```json\n{{"subtasks": {listed}, "confidence": "hi',
}


def objections(call, *args):
    with pytest.raises(AnswerError) as caught:
        call(*args)
    return list(caught.value.objections)


def changed(number, **fields):
    return [each._replace(**fields) if at == number else each for at, each in enumerate(VALID)]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("75.25", 75.25),
        ("00:12", 12),
        ("00:12.5", 12.5),
        ("1:02", 62),
        ("100:00.0", 6000),
        ("00:01:30", 90),
        ("01:02:03.5", 3723.5),
        (" 00:05\n", 5),
        ("3.3333333333333335", 3.3333333333333335),
        (12, 12),
        (12.5, 12.5),
        (0, 0),
        (1e6, 1e6),
    ],
)
def test_times(value, seconds):
    parsed = parse_time(value)
    assert (parsed, type(parsed)) == (seconds, float)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *(
            (text, f"{text!r} is no time; write it like 00:12.5")
            for text in ("", "soon", "-1", "12s", "00:12,5", ".5", "5.", "1e3", "1:2:3:4", ":30", "00:", "0:-1", "²")
        ),
        (None, "None is no time; write it like 00:12.5"),
        (True, "True is no time; write it like 00:12.5"),
        ([1], "a list is no time; write it like 00:12.5"),
        ({}, "an object is no time; write it like 00:12.5"),
        ("00:60", "'00:60' is no time; minutes and seconds after a colon go up to 59"),
        ("00:60:00", "'00:60:00' is no time; minutes and seconds after a colon go up to 59"),
        ("00:12:500", "'00:12:500' is no time; minutes and seconds after a colon go up to 59"),
        ("9999:00:00", "'9999:00:00' is no time inside an episode"),
        (-0.1, "-0.1 is no time inside an episode"),
        (math.nan, "nan is no time inside an episode"),
        (math.inf, "inf is no time inside an episode"),
        ("x" * 200, f"'{'x' * 97}...' is no time; write it like 00:12.5"),
        (10**200, f"1{'0' * 99} is no time inside an episode"),
    ],
)
def test_no_times(value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_time(value)


@given(st.one_of(st.text(), st.text("0123456789:. ", max_size=12), st.floats(), st.integers(), st.none()))
def test_any_time_is_seconds_or_a_value_error(value):
    try:
        seconds = parse_time(value)
    except ValueError:
        return
    assert 0 <= seconds <= 1e6


@given(st.floats(0, 500_000))
def test_a_clock_is_read_as_the_nearest_tenth(seconds):
    assert parse_time(clock(seconds)) == pytest.approx(seconds, abs=0.05 + 1e-9)
    assert parse_time(clock(seconds, 3)) == pytest.approx(seconds, abs=0.0005 + 1e-9)
    assert clock(parse_time(clock(seconds))) == clock(seconds)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "00:00.0"), (9.94, "00:09.9"), (59.96, "01:00.0"), (3600, "60:00.0"), (6000, "100:00.0")]
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown


def test_clock_with_digits():
    assert (clock(61.0335, 3), clock(59.9996, 3), clock(5, 3)) == ("01:01.034", "01:00.000", "00:05.000")


@given(segmentations(), st.sampled_from(list(WRITE_TIME)), st.sampled_from(list(WRITE_ANSWER)), st.booleans())
def test_what_holds_becomes_frames_however_it_is_written(segmentation, time_format, answer_format, as_lerobot):
    rules, tenths = segmentation
    listed = []
    for name, *sides in zip(rules.labels, tenths, tenths[1:], strict=False):
        times = dict(zip(("start", "end"), map(WRITE_TIME[time_format], sides), strict=True))
        listed.append({"name": name, **({"timestamps": times} if as_lerobot else times)})
    text = WRITE_ANSWER[answer_format].format(listed=json.dumps(listed, indent=2))
    subtasks = parse_answer(text)
    assert subtasks == subtasks_of(rules, tenths)
    taken = take_subtasks(subtasks, rules)
    start = tuple((2 * tenth * rules.fps + 10) // 20 for tenth in tenths[:-1])
    assert taken == FrameSubtasks(rules.labels, start, (*start[1:], rules.length - 1))
    assert start[0] == 0
    assert all(first < second for first, second in itertools.pairwise(start))
    assert start[-1] < rules.length


@given(
    st.integers(1, 400),
    st.sampled_from([1, 7, 15, 29.97, 30, 60]),
    st.floats(0, 3),
    st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60)), min_size=1, max_size=4),
)
def test_whatever_is_taken_is_a_partition(length, fps, tolerance_s, times):
    subtasks = [Subtask(name, *sides) for name, sides in zip(LABELS, sorted(times), strict=False)]
    rules = SubtaskRules(LABELS[: len(times)], fps, length, tolerance_s)
    try:
        taken = take_subtasks(subtasks, rules)
    except AnswerError:
        return
    assert (taken.names, taken.start[0], taken.end[-1]) == (rules.labels, 0, length - 1)
    assert taken.end[:-1] == taken.start[1:]
    assert list(taken.start) == sorted(set(taken.start))
    assert taken.start[-1] < length


@given(st.integers(1, 10_000), st.sampled_from([1, 7, 15, 24, 29.97, 30, 50, 60]), st.data())
def test_frames_written_as_their_times_come_back(length, fps, data):
    first = data.draw(st.integers(0, length - 1))
    starts = [0, first] if first else [0]
    rules = SubtaskRules(LABELS[: len(starts)], fps, length, tolerance_s=0)
    ends = [*starts[1:], length]
    subtasks = [Subtask(name, start / fps, end / fps) for name, start, end in zip(LABELS, starts, ends, strict=False)]
    assert take_subtasks(subtasks, rules).start == tuple(starts)


def test_halves_go_up():
    rules = SubtaskRules(("a", "b", "c"), fps=5, length=10, tolerance_s=0)
    taken = take_subtasks([Subtask("a", 0, 0.3), Subtask("b", 0.3, 0.5), Subtask("c", 0.5, 2)], rules)
    assert taken.start == (0, 2, 3)  # 1.5 and 2.5
    rules = SubtaskRules(("a", "b"), fps=15, length=100, tolerance_s=1)
    assert take_subtasks([Subtask("a", 0, 4.1), Subtask("b", 4.1, 6.6)], rules).start == (0, 62)  # 61.49999999999999


@pytest.mark.parametrize("last_end", [8.6, 9.0, 9.5, 9.6, 10, 10.6])
def test_ends_within_the_tolerance_become_the_last_frame(last_end):
    rules = SubtaskRules(("a", "b"), fps=30, length=288, tolerance_s=1.0)
    taken = take_subtasks([Subtask("a", 1.0, 4.0), Subtask("b", 5.0, last_end)], rules)
    assert taken == FrameSubtasks(("a", "b"), (0, 150), (150, 287))


@pytest.mark.parametrize(
    ("first_start", "last_end", "objection"),
    [
        (1.01, 9.6, "the first subtask starts at 00:01.0, not at 00:00.0"),
        (0, 8.59, "the last subtask ends at 00:08.6, not at the episode's end 00:09.6"),
        (0, 10.61, "the last subtask ends at 00:10.6, not at the episode's end 00:09.6"),
    ],
)
def test_ends_beyond_the_tolerance(first_start, last_end, objection):
    rules = SubtaskRules(("a",), fps=30, length=288, tolerance_s=1.0)
    assert check_subtasks([Subtask("a", first_start, last_end)], rules) == [objection]


def test_a_small_tolerance_is_shown_with_more_digits():
    rules = SubtaskRules(("a", "b"), fps=30, length=288, tolerance_s=0.01)
    assert check_subtasks([Subtask("a", 0.02, 5), Subtask("b", 5.04, 9.62)], rules) == [
        "the first subtask starts at 00:00.020, not at 00:00.000",
        "the last subtask ends at 00:09.620, not at the episode's end 00:09.600",
        "'b' starts at 00:05.040, but 'a' before it ends at 00:05.000: a gap",
    ]


def test_a_start_that_rounds_beyond_the_last_frame_is_the_last_frame():
    rules = SubtaskRules(("a", "b"), fps=10, length=96, tolerance_s=1.0)
    assert take_subtasks([Subtask("a", 0, 9.59), Subtask("b", 9.59, 10)], rules).start == (0, 95)
    assert check_subtasks([Subtask("a", 0, 9.6), Subtask("b", 9.6, 10)], rules) == [
        "'b' starts at 00:09.6, not before the episode's end 00:09.6"
    ]


def test_an_episode_of_one_frame():
    rules = SubtaskRules(("a",), fps=30, length=1, tolerance_s=1.0)
    for end_s in (1 / 30, 0.5, 1):
        assert take_subtasks([Subtask("a", 0, end_s)], rules) == FrameSubtasks(("a",), (0,), (0,))
    both = [Subtask("a", 0, 0.02), Subtask("b", 0.02, 1)]
    assert objections(take_subtasks, both, replace(rules, labels=("a", "b"))) == [
        "'b' begins in the same frame as 'a'; each needs at least one frame"
    ]
    assert whole_task("task", 1) == FrameSubtasks(("task",), (0,), (0,))


def test_crowded_subtasks_are_said_one_by_one():
    subtasks = [Subtask("a", 0, 0.01), Subtask("b", 0.01, 0.02), Subtask("c", 0.02, 1)]
    assert objections(snap_subtasks, subtasks, SubtaskRules(("a", "b", "c"), 10, 10, 1.0)) == [
        "'b' begins in the same frame as 'a'; each needs at least one frame",
        "'c' begins in the same frame as 'b'; each needs at least one frame",
    ]


def test_a_whole_task():
    assert whole_task("fold it", 90) == FrameSubtasks(("fold it",), (0,), (89,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [NO_JSON]),
        ("I cannot see the video.", [NO_JSON]),
        ("[] {} [1] 5 null", [NO_JSON]),
        ('{"subtasks": {"name": "a"}}', [NO_JSON]),
        ('{"subtasks": [{"name": "a", "start": 0, "end": 1}, {"name": "b", "sta', [NO_JSON]),
        ("{'subtasks': [{'name': 'a', 'start': 0, 'end': 1}]}", [NO_JSON]),
        ('{"subtasks": []}', ["`subtasks` is empty"]),
        (json.dumps({"subtasks": [1] * (MAX_SUBTASKS + 1)}), ["`subtasks` has 1,001 entries, more than 1,000"]),
        ("x" * (MAX_ANSWER_CHARS + 1), ["the answer has 100,001 characters; give the JSON alone"]),
        (
            '{"subtasks": ["reach", {"start": 0, "end": 1}, {"name": " ", "start": 0, "end": 1}, {"name": 3}, null, []]}',
            [
                "subtask 1: 'reach' is no object with name, start and end",
                "subtask 2: it has no name",
                "subtask 3: it has no name",
                "subtask 4: it has no name",
                "subtask 5: None is no object with name, start and end",
                "subtask 6: a list is no object with name, start and end",
            ],
        ),
        (
            '{"subtasks": [{"name": "a"}, {"name": "b", "start": 0}, {"name": "c", "start": null, "end": 1},'
            '{"name": "d", "timestamps": {"start": "0:00"}, "end": 1}, {"name": "e", "timestamps": ["0:00", "0:01"]}]}',
            [
                "subtask 1: 'a' has no start and no end",
                "subtask 2: 'b' has no end",
                "subtask 3: 'c' has no start",
                "subtask 4: 'd' has no end",
                "subtask 5: 'e' has no start and no end",
            ],
        ),
        (
            '{"subtasks": [{"name": "a", "start": "1s", "end": "0:75"}, {"name": "b", "start": 0, "end": NaN}]}',
            [
                "subtask 1: start: '1s' is no time; write it like 00:12.5; "
                "end: '0:75' is no time; minutes and seconds after a colon go up to 59",
                "subtask 2: end: nan is no time inside an episode",
            ],
        ),
    ],
)
def test_answers_that_cannot_be_read(text, expected):
    assert objections(parse_answer, text) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.just("00:05"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["subtasks", "name", "start", "end", "timestamps", "x"]), inner, max_size=5)
    ),
    max_leaves=20,
)
times = st.floats(-1, 30) | st.integers(0, 10**7) | st.sampled_from(["0:05", "00:09.5", "0:00:20", "1s", None])
scraps = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ",",
    ":",
    "\\",
    "```",
    "```json",
    "subtasks",
    '"name"',
    "1",
    "00:05",
    " ",
    "\n",
    '[{"',
]


@given(
    st.one_of(
        st.text(st.characters(), max_size=200),
        st.lists(st.sampled_from(scraps), max_size=60).map("".join),
        json_values.map(json.dumps),
        st.lists(json_values, max_size=3).map(lambda listed: json.dumps({"subtasks": listed})),
        st.lists(
            st.fixed_dictionaries({"name": names | st.sampled_from(LABELS), "start": times, "end": times}), min_size=1
        ).map(lambda listed: json.dumps({"subtasks": listed})),
    )
)
@example('{"subtasks": [{"name": "\\ud800", "start": 0, "end": 1}]}')
@example('{"subtasks": [{"name": "a", "start": ' + "9" * 5000 + ', "end": 1}]}')
@example('{"subtasks": [{"name": "a", "start": 1e999, "end": -0.0}]}')
def test_any_text_is_subtasks_or_an_answer_error(text):
    try:
        taken = take_subtasks(parse_answer(text), RULES)
    except AnswerError as error:
        said = error.objections
    else:
        said = ("taken",)
        assert taken.names == LABELS
    assert said
    assert all(said)
    "".join(said).encode()  # no lone surrogates: objections are written to files and put back to the model


@pytest.mark.parametrize(
    "start",
    [*("[", "{", '{"a":', '[{"a":', '["', "```json ", "[ ", '{"subtasks":['), '{"subtasks":' + "[" * 900],
)
@pytest.mark.parametrize("end", ["", "[" + "1," * 1000, '"' + '\\"' * 1000, " " * 1000])
def test_hostile_text_of_the_greatest_length_is_refused(start, end):
    """Quadratic time would be minutes each."""
    text = start * ((MAX_ANSWER_CHARS - len(end)) // len(start)) + end
    assert objections(parse_answer, text) == [NO_JSON]


@pytest.mark.parametrize("depth", range(900, 1000, 9))
def test_values_that_are_nested_as_deep_as_json_goes(depth):
    nested = "[" * depth + "]" * depth
    said = objections(parse_answer, '{"subtasks": [{"name": "a", "end": 1, "start": ' + nested + "}]}")
    assert said in ([NO_JSON], ["subtask 1: start: a list is no time; write it like 00:12.5"])


def test_hints_for_many_unknown_names_are_few():
    """A hint takes milliseconds, and a model that repeats itself sends hundreds of names."""
    subtasks = [Subtask(f"reach {number}", number, number + 1) for number in range(MAX_SUBTASKS)]
    said = check_subtasks(subtasks, RULES)[:MAX_SUBTASKS]
    assert said[0] == "'reach 0' is not one of the labels; did you mean 'reach'?"
    assert said[-1] == "'reach 999' is not one of the labels"
    assert sum("did you mean" in each for each in said) == MAX_OBJECTIONS


def test_objections_beyond_the_first_are_counted():
    said = [f"objection {number}" for number in range(1021)]
    assert AnswerError(said).objections == (*said[:20], "there are 1,001 more objections")
    assert AnswerError(said[:20]).objections == tuple(said[:20])


def test_an_answer_error_survives_pickling():
    for said in (["one", "two"], [str(number) for number in range(30)]):
        error = AnswerError(said)
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (str(again), again.objections) == (str(error), error.objections)
    assert str(AnswerError(["one", "two"])) == "one; two"


def test_subtasks_that_hold():
    assert check_subtasks(VALID, RULES) == []
    assert take_subtasks(VALID, RULES) == FrameSubtasks(LABELS, (0, 50, 90, 140), (50, 90, 140, 199))


@pytest.mark.parametrize(
    ("subtasks", "expected"),
    [
        ([], ["there are no subtasks"]),
        (
            changed(1, name="graps"),
            ["'graps' is not one of the labels; did you mean 'grasp'?", "'grasp' is missing"],
        ),
        (changed(1, name="Ω\n\ud800"), [r"'Ω\n\ud800' is not one of the labels", "'grasp' is missing"]),
        (
            changed(1, name="z" * 101),
            [f"'{'z' * 97}...' is not one of the labels", "'grasp' is missing"],
        ),
        (changed(1, start_s=6.5), ["'grasp' starts at 00:06.5, but 'reach' before it ends at 00:05.0: a gap"]),
        (changed(1, start_s=3.5), ["'grasp' starts at 00:03.5, but 'reach' before it ends at 00:05.0: an overlap"]),
        (changed(1, start_s=6), []),
        (changed(1, start_s=4), []),
        (changed(1, end_s=5), [
            "'grasp' ends at 00:05.0, not after its start 00:05.0",
            "'lift' starts at 00:09.0, but 'grasp' before it ends at 00:05.0: a gap",
        ]),
        (changed(2, start_s=5, end_s=14), [
            "'lift' starts at 00:05.0, not after the start of 'grasp' at 00:05.0",
        ]),
        (changed(3, start_s=20, end_s=20.5), [
            "'place' starts at 00:20.0, not before the episode's end 00:20.0",
            "'place' starts at 00:20.0, but 'lift' before it ends at 00:14.0: a gap",
        ]),
        (changed(0, start_s=2), ["the first subtask starts at 00:02.0, not at 00:00.0"]),
        (changed(0, start_s=-2), ["'reach': -2 is no time inside an episode"]),
        (changed(0, end_s=math.nan), ["'reach': nan is no time inside an episode"]),
        (changed(3, end_s=math.inf), ["'place': inf is no time inside an episode"]),
        (VALID[1:], ["'reach' is missing", "the first subtask starts at 00:05.0, not at 00:00.0"]),
        (VALID[:3], ["'place' is missing", "the last subtask ends at 00:14.0, not at the episode's end 00:20.0"]),
        (VALID[::-1], [
            "'lift' comes after 'place', against the order of the labels",
            "'grasp' comes after 'lift', against the order of the labels",
            "'reach' comes after 'grasp', against the order of the labels",
            "the first subtask starts at 00:14.0, not at 00:00.0",
            "the last subtask ends at 00:05.0, not at the episode's end 00:20.0",
            "'lift' starts at 00:09.0, not after the start of 'place' at 00:14.0",
            "'grasp' starts at 00:05.0, not after the start of 'lift' at 00:09.0",
            "'reach' starts at 00:00.0, not after the start of 'grasp' at 00:05.0",
        ]),
    ],
)  # fmt: skip
def test_objections(subtasks, expected):
    assert check_subtasks(subtasks, RULES) == expected
    if expected:
        assert objections(take_subtasks, subtasks, RULES) == expected


def test_labels_with_commas_quotes_and_other_alphabets():
    labels = ("pick, then lift", 'it\'s "on"', "折る\u202e")
    rules = SubtaskRules(labels, fps=10, length=60, tolerance_s=1.0)
    subtasks = [Subtask(label, 2 * number, 2 * number + 2) for number, label in enumerate(labels)]
    assert take_subtasks(subtasks, rules).names == labels
    assert check_subtasks([subtasks[0]._replace(end_s=6)], rules) == [
        "'it\\'s \"on\"' is missing",
        "'折る\\u202e' is missing",
    ]


def named(*order):
    step = 20 / len(order)
    return [Subtask(name, step * number, step * (number + 1)) for number, name in enumerate(order)]


@pytest.mark.parametrize(
    ("order", "fields", "expected"),
    [
        (("reach", "grasp", "reach", "grasp", "lift", "place"), {"allow_repeats": True}, []),
        (("reach", "grasp", "lift", "grasp", "lift", "place", "place", "place"), {"allow_repeats": True}, [
            "'place' comes twice in a row; make it one subtask",
        ]),
        (("reach", "grasp", "reach"), {"allow_repeats": True}, ["'lift' is missing", "'place' is missing"]),
        (("grasp", "reach", "grasp"), {"allow_repeats": True, "allow_missing": True}, [
            "'reach' comes after 'grasp', against the order of the labels",
        ]),
        (("reach", "grasp", "reach"), {"allow_missing": True}, ["'reach' is there 2 times, not once"]),
        (("grasp",), {"allow_missing": True}, []),
        (("reach", "place"), {"allow_missing": True}, []),
        (("place", "reach"), {"allow_missing": True}, ["'reach' comes after 'place', against the order of the labels"]),
    ],
)  # fmt: skip
def test_repeated_and_missing_labels(order, fields, expected):
    rules = replace(RULES, **fields)
    assert check_subtasks(named(*order), rules) == expected
    if not expected:
        assert take_subtasks(named(*order), rules).names == order


@given(segmentations(min_labels=2, min_seconds=4), st.data())
def test_each_single_mutation_is_refused(segmentation, data):
    rules, tenths = segmentation
    valid = subtasks_of(rules, tenths)
    assert check_subtasks(valid, rules) == []
    number = data.draw(st.integers(0, len(valid) - 2))
    one, two = valid[number], valid[number + 1]
    head, tail = valid[:number], valid[number + 2 :]
    episode_end = clock(rules.duration_s)

    def refused(*subtasks):
        said = objections(take_subtasks, [*head, *subtasks, *tail], rules)
        assert said == check_subtasks([*head, *subtasks, *tail], rules)
        return said

    def starts(at):
        return f"{two.name!r} starts at {clock(at)}, but {one.name!r} before it ends at {clock(one.end_s)}"

    unknown = "no such label"
    assert refused(one, two._replace(name=unknown)) == [
        f"'no such label' is not one of the labels{nearest(unknown, rules.labels)}",
        f"{two.name!r} is missing",
    ]
    assert refused(one._replace(name=two.name), two._replace(name=one.name)) == [
        f"{one.name!r} comes after {two.name!r}, against the order of the labels"
    ]
    assert f"{one.name!r} starts at {clock(one.start_s)}, not after the start of {two.name!r} at " + clock(
        two.start_s
    ) in refused(two, one)
    assert refused(one, two._replace(start_s=two.start_s + 2)) == [f"{starts(two.start_s + 2)}: a gap"]
    assert refused(one, two._replace(start_s=two.start_s - 2)) == [f"{starts(two.start_s - 2)}: an overlap"]
    missing = refused(one)
    assert (missing[0], len(missing)) == (f"{two.name!r} is missing", 2)
    middle = (two.start_s + two.end_s) / 2
    assert refused(one, two._replace(end_s=middle), two._replace(start_s=middle)) == [
        f"{two.name!r} is there 2 times, not once"
    ]
    assert f"{one.name!r} ends at {clock(one.start_s)}, not after its start {clock(one.end_s)}" in refused(
        one._replace(start_s=one.end_s, end_s=one.start_s), two
    )
    beyond = valid[-1]._replace(end_s=valid[-1].end_s + 2)
    late = f"the last subtask ends at {clock(beyond.end_s)}, not at the episode's end {episode_end}"
    assert objections(take_subtasks, [*valid[:-1], beyond], rules) == [late]
    outside = beyond._replace(start_s=beyond.end_s - 0.5)
    assert objections(take_subtasks, [*valid[:-1], outside], rules)[:2] == [
        f"{outside.name!r} starts at {clock(outside.start_s)}, not before the episode's end {episode_end}",
        late,
    ]


def frames(*starts, length):
    return FrameSubtasks(LABELS[: len(starts)], starts, (*starts[1:], length - 1))


@pytest.mark.parametrize(
    ("subtasks", "uniform"),
    [
        (frames(0, 33, 67, length=100), True),  # 33, 34 and 33 frames
        (frames(0, 100, 200, length=300), True),
        (frames(0, 103, 203, length=300), False),  # 103, 100 and 97
        (frames(0, 1000, 2015, length=3000), True),  # 1000, 1015 and 985: 3 % of the mean
        (frames(0, 1000, 2016, length=3000), False),
        (frames(0, 50, 90, 140, length=200), False),
        (frames(0, 50, length=100), False),  # two halves may well be
        (frames(0, length=100), False),
    ],
)
def test_uniform_splits(subtasks, uniform):
    assert is_uniform_split(subtasks) == uniform


@given(st.integers(3, 4), st.integers(10, 3000), st.sampled_from([10, 15, 30, 50]))
def test_a_split_without_looking_is_uniform(count, length, fps):
    rules = SubtaskRules(LABELS[:count], fps, length, tolerance_s=0)
    step = length / fps / count
    subtasks = [Subtask(name, step * number, step * (number + 1)) for number, name in enumerate(rules.labels)]
    assert is_uniform_split(take_subtasks(subtasks, rules))
