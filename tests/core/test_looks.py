"""A follower's memory, whatever comes and goes: looked into when it is steady, once, and said once."""

from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.looks import CHANGING, Watched, note, num_waiting, take_look

names, stamps = st.sampled_from("abc"), st.sampled_from("123")
looks = st.lists(st.dictionaries(names, stamps), max_size=12)
verdicts = st.lists(st.tuples(st.sampled_from(["", "half", "broken"]), st.booleans()), min_size=1, max_size=30)


def watch(history: list[dict[str, str]], answers: list[tuple[str, bool]]):
    """Each look: what was found, the memory before and after it, what was looked into, and what was said."""
    memory: dict[str, Watched] = {}
    number = 0
    for found in history:
        before, look = memory, take_look(memory, found)
        memory, said = dict(look.memory), [(name, CHANGING) for name in look.changing]
        for name in look.steady:
            reason, settled = answers[number % len(answers)]
            number += 1
            memory[name], is_news = note(memory[name], reason, settled)
            said += [(name, reason)] if is_news else []
        yield found, before, memory, look.steady, said


@given(looks, verdicts)
def test_nothing_is_looked_into_unless_two_looks_found_it_the_same(history, answers):
    previous: dict[str, str] = {}
    for found, _, _, steady, _ in watch(history, answers):
        assert all(previous.get(name) == found[name] for name in steady)
        previous = found


@given(looks, verdicts)
def test_what_is_settled_is_left_until_it_changes_and_what_is_not_is_looked_into_again(history, answers):
    for found, before, _, steady, _ in watch(history, answers):
        same = {name for name in found if name in before and before[name].stamp == found[name]}
        assert set(steady) == {name for name in same if not before[name].settled}


@given(looks, verdicts)
def test_the_memory_is_of_what_is_there_and_of_nothing_else(history, answers):
    for found, _, memory, _, _ in watch(history, answers):
        assert {name: each.stamp for name, each in memory.items()} == found


@given(looks, verdicts)
def test_a_reason_is_said_when_it_is_another_one_and_then_once(history, answers):
    last: dict[str, str] = {}
    for found, _, memory, _, said in watch(history, answers):
        last = {name: reason for name, reason in last.items() if name in found}
        for name, reason in said:
            assert reason
            assert last.get(name, "") != reason
            last[name] = reason
        for name, each in memory.items():
            if each.said:  # whatever is remembered as said was
                assert last[name] == each.said
            else:
                last.pop(name, None)
        assert num_waiting(memory.values()) == len(last)


@given(looks, st.dictionaries(names, stamps, min_size=1))
def test_what_stays_as_it_is_is_looked_into_once_and_for_all(history, final):
    watched = list(watch([*history, *[final] * 5], [("", True)]))
    settled = [name for *_, steady, _ in watched[len(history) :] for name in steady]
    assert len(settled) == len(set(settled))
    *_, memory, _, _ = watched[-1]
    assert all(each.settled for each in memory.values())


def test_a_dry_look_does_not_wait():
    look = take_look({}, {"b": "1", "a": "2"}, patient=False)
    assert (look.steady, look.changing) == (("a", "b"), ())
