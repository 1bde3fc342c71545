"""The command line: aliases, exit codes, one line per error. What a command does is tested where it is done."""

import pytest
from click.testing import CliRunner

from sarm_ray.cli import main


def run(*arguments: str):
    return CliRunner().invoke(main, arguments)


def test_help_lists_the_commands():
    result = run("--help")
    assert result.exit_code == 0
    for name in ("score", "bench"):
        assert f"\n  {name} " in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score",), "error: dataset is missing; give it as an argument or in --config"),
        (("score", "a"), "error: model is missing; give it as an argument or in --config"),
        (("score", "a", "--model", "b", "--stride", "0"), "error: stride must be at least 1, not 0"),
        (("score", "a", "--model", "b", "--head-mode", "all"), "'all' is not one of 'sparse', 'dense', 'both'"),
        (("score", "--config", "nowhere.yaml"), "error: nowhere.yaml: No such file or directory"),
    ],
)
def test_bad_input_exits_with_2_and_no_traceback(arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_lerobots_names_are_aliases():
    result = run("score", "--dataset-repo-id", "a", "--reward-model-path", "b", "--stride", "0", "--output-path", "c")
    assert result.output == "error: stride must be at least 1, not 0\n"
