"""What people read in an error message."""

import pytest

from sarm_ray.errors import by_nearness, name_list, nearest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("obervation.state", "; did you mean 'observation.state'?"),
        ("observation.images.tpo", "; did you mean 'observation.images.top'?"),
        ("zzz", ""),
    ],
)
def test_nearest(name, expected):
    assert nearest(name, ["observation.images.top", "observation.state", "action"]) == expected


def test_nearest_takes_any_iterable():
    assert nearest("stride", {"strid": 1}.keys()) == "; did you mean 'strid'?"
    assert nearest("stride", ()) == ""


def test_by_nearness_is_stable_where_nothing_is_near():
    cameras = ["images.base", "images.wrist", "images.top"]
    assert by_nearness("images.wirst", cameras) == ["images.wrist", "images.top", "images.base"]
    assert by_nearness("zzz", cameras) == cameras
    assert by_nearness("x", ()) == []


def test_name_list():
    assert name_list([]) == "none"
    assert name_list(["a", "b"]) == "a, b"
    assert name_list("abcde", limit=3) == "a, b, c and 2 more"
    assert name_list(str(n) for n in range(13)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 1 more"
