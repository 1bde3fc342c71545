"""Of a long row of like cases that cost seconds each, some run by default; `make slow` runs the rest."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def others_slow(cases: Iterable[Any], kept: Container[Any]) -> list[Any]:
    """The cases, each a parameter, with those marked slow that are not kept."""
    return [case if case in kept else pytest.param(*_values(case), marks=pytest.mark.slow) for case in cases]


def _values(case: Any) -> tuple:
    return case if isinstance(case, tuple) else (case,)
