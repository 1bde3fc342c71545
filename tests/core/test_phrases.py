"""Texts of language perturbation: plain, many, and the same ones for a seed."""

from hypothesis import given
from hypothesis import strategies as st

from sarm_ray.core.phrases import VERBS, WORDS, random_phrases


@given(st.integers(0, 2**70), st.integers(0, 40), st.integers(0, 40))
def test_a_phrase_is_a_verb_and_one_to_five_words(seed, count, fewer):
    phrases = random_phrases(seed, count)
    assert len(phrases) == count
    for phrase in phrases:
        verb, *words = phrase.split(" ")
        assert verb in VERBS
        assert 1 <= len(words) <= 5
        assert set(words) <= set(WORDS)
    assert random_phrases(seed, min(fewer, count)) == phrases[:fewer]  # a function of seed and number


def test_they_differ_and_every_part_occurs():
    phrases = random_phrases(0, 2000)
    assert len(set(phrases)) > 1800
    assert {phrase.split()[0] for phrase in phrases} == set(VERBS)
    assert {word for phrase in phrases for word in phrase.split()[1:]} == set(WORDS)
    assert {len(phrase.split()) for phrase in phrases} == {2, 3, 4, 5, 6}
    assert random_phrases(1, 2000) != phrases
    assert len(WORDS) == len(set(WORDS)) == 108


def test_pinned():
    """Never changes: a resumed run hears what it would have heard."""
    assert random_phrases(1000, 4) == [
        "place fabric blue autumn",
        "place brown garden",
        "push metal carpet planet turtle",
        "move lemon pebble bell salt",
    ]
