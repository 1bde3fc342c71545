"""What the cluster's runs are compared with, and their times, told at the end: README's table of faults comes from them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.faults import scoring
from tests.pipelines.runs import sarm_ray

MEASURED: list[tuple[str, float, float | None]] = []


@pytest.fixture(scope="session")
def one_node(tmp_path_factory) -> Path:
    """The scores of one machine to which nothing happened."""
    folder = tmp_path_factory.mktemp("one_node")
    run = sarm_ray(*scoring(folder))
    assert run.returncode == 0, run.stderr
    return folder / "out.parquet"


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
