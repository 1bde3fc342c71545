"""Progress lines and units, as people read them."""

import pytest

from sarm_ray.console import Progress, duration, size


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_left_starts_counting_with_the_first_result(capsys):
    clock = Clock()
    progress = Progress("encode", 1000, clock=clock)
    assert progress.line() == "encode            0/1,000 frames   0%      0.0 frames/s"
    clock.now += 9  # start-up
    progress.add(100)
    assert progress.line() == "encode          100/1,000 frames  10%     11.1 frames/s"
    clock.now += 1
    progress.add(100)
    assert progress.line() == "encode          200/1,000 frames  20%     20.0 frames/s  8.0s left"
    assert capsys.readouterr().err == progress.line() + "\n"  # plain lines, every 10 seconds
    clock.now += 8
    progress.add(800)
    assert progress.finish() == 18
    assert capsys.readouterr().err == "encode        1,000/1,000 frames 100%     55.6 frames/s  in 18s\n"


def test_quiet_prints_nothing(capsys):
    Progress("score", 10, quiet=True).finish()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0s"), (9.94, "9.9s"), (42, "42s"), (187, "3m07s"), (7500, "2h05m")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("num_bytes", "text"), [(512, "512 B"), (8_700_000, "8.7 MB"), (1.25e12, "1.2 TB")])
def test_size(num_bytes, text):
    assert size(num_bytes) == text
