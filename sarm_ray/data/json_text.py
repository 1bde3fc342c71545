"""Changing keys of a JSON object in its text: all else keeps its bytes, spellings of numbers, order and spaces."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

_DECODER = json.JSONDecoder()
_SPACES = " \t\r\n"


class _Pair(NamedTuple):
    """Where a key and its value lie in the text."""

    key: str
    start: int
    key_stop: int
    value_start: int
    value_stop: int


def with_keys(text: str, changes: Mapping[str, Any]) -> str:
    """The text of an object with values replaced in place, and new keys added at its end in the style of the others.

    Args:
        text: a JSON object, valid, and nothing else but spaces.
        changes: key -> its new value.
    """
    pairs = _pairs(text)
    comma, colon = ", ", ": "
    if pairs:
        colon = text[pairs[0].key_stop : pairs[0].value_start]
    if len(pairs) > 1:
        comma = text[pairs[0].value_stop : pairs[1].start]
    pieces, at = [], 0
    for pair in pairs:
        if pair.key in changes:
            pieces += [text[at : pair.value_start], _dump(changes[pair.key], comma)]
            at = pair.value_stop
    added = [key for key in changes if key not in {pair.key for pair in pairs}]
    if added:
        end = pairs[-1].value_stop if pairs else text.index("{") + 1
        new = comma.join(f"{json.dumps(key)}{colon}{_dump(changes[key], comma)}" for key in added)
        pieces += [text[at:end], comma if pairs else "", new]
        at = end
    return "".join(pieces) + text[at:]


def _dump(value: Any, comma: str) -> str:
    return json.dumps(value, separators=(", " if comma.strip() != comma else ",", ":"), ensure_ascii=False)


def _pairs(text: str) -> list[_Pair]:
    pairs, at = [], _after_spaces(text, text.index("{") + 1)
    while text[at] != "}":
        key, key_stop = _DECODER.raw_decode(text, at)
        value_start = _after_spaces(text, text.index(":", key_stop) + 1)
        value_stop = _DECODER.raw_decode(text, value_start)[1]
        pairs.append(_Pair(key, at, key_stop, value_start, value_stop))
        at = _after_spaces(text, value_stop)
        if text[at] == ",":
            at = _after_spaces(text, at + 1)
    return pairs


def _after_spaces(text: str, at: int) -> int:
    while text[at] in _SPACES:
        at += 1
    return at
