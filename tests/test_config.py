"""Configs: YAML and flags in, one frozen object out, or words that say what is wrong."""

import re

import pytest

from sarm_ray.config.loading import apply_settings, dump_config, load_config
from sarm_ray.config.score import ScoreConfig
from sarm_ray.errors import ConfigError


def write(tmp_path, text: str) -> str:
    path = tmp_path / "score.yaml"
    path.write_text(text)
    return str(path)


def test_flags_override_the_file(tmp_path):
    file = write(tmp_path, "dataset: a\nmodel: b\nhead-mode: both\nstride: 5\n")
    config = load_config(ScoreConfig, file, {"stride": 2})
    assert config == ScoreConfig(dataset="a", model="b", head_mode="both", stride=2)


def test_what_is_written_is_read_back_equal(tmp_path):
    config = ScoreConfig(dataset="a", model="b", task="fold: the 'towel'", stride=3, allow_failures=1)
    assert load_config(ScoreConfig, write(tmp_path, dump_config(config)), {}) == config


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("head_mood: both", {"dataset": "a", "model": "b"}, "unknown key 'head_mood'; did you mean 'head_mode'?"),
        ("- a\n- b", {}, "expected a mapping of keys to values, found list"),
        ("a: [", {}, "not YAML"),
        ("stride: many", {"dataset": "a", "model": "b"}, "stride must be a whole number, not 'many'"),
        ("stride: true", {"dataset": "a", "model": "b"}, "stride must be a whole number, not True"),
        ("head_mode: all", {"dataset": "a", "model": "b"}, "head_mode must be sparse or dense or both, not 'all'"),
        ("stride: 0", {"dataset": "a", "model": "b"}, "stride must be at least 1, not 0"),
        ("stride: 2", {"dataset": "a"}, "model is missing; give it as an argument or in --config"),
        ("task: 7", {"dataset": "a", "model": "b"}, "task must be text, not 7"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, flags, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(ScoreConfig, write(tmp_path, text), flags)


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file or directory"):
        load_config(ScoreConfig, "nowhere.yaml", {})


@pytest.mark.parametrize("text", ["1:8", "10:20", "0:10,15", "190:20:30"])
def test_ranges_are_text_in_yaml_too(tmp_path, text):
    """YAML 1.1 takes 10:20 for 620, in base 60."""
    (tmp_path / "score.yaml").write_text(f"dataset: d\nmodel: m\nepisodes: {text}\n")
    assert load_config(ScoreConfig, str(tmp_path / "score.yaml"), {}).episodes == text
    assert apply_settings({}, [f"num_workers={text}"]) == {"num_workers": text}


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12), ("-3", -3), ("1.5", 1.5), ("1e-4", 1e-4), ("0x1f", 31), ("0", 0)]
)
def test_numbers_are_numbers(text, value):
    assert apply_settings({}, [f"x={text}"]) == {"x": value}
