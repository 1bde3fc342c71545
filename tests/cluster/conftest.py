"""Measured times of the cluster's tests, told at the end: README's table of faults comes from it."""

from collections.abc import Callable

import pytest

MEASURED: list[tuple[str, float, float | None]] = []


@pytest.fixture(scope="session")
def measured() -> Callable[[str, float, float | None], None]:
    """Note what was run, its seconds, and those of the undisturbed run."""
    return lambda what, seconds, undisturbed=None: MEASURED.append((what, seconds, undisturbed))


def pytest_terminal_summary(terminalreporter):
    if MEASURED:
        terminalreporter.section("times of the cluster's runs")
    for what, seconds, undisturbed in MEASURED:
        lost = (
            ""
            if undisturbed is None
            else f", {seconds - undisturbed:+.0f} s against the undisturbed {undisturbed:.0f} s"
        )
        terminalreporter.line(f"{what}: {seconds:.0f} s{lost}")
