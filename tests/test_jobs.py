"""The configs in jobs/ are ones that the commands take."""

from pathlib import Path

import yaml

from sarm_ray.config import ScoreConfig, load_config

JOBS = Path(__file__).parents[1] / "jobs"


def test_score_yaml_is_a_config_also_with_every_comment_taken_as_a_key():
    text = (JOBS / "score.yaml").read_text()
    assert load_config(ScoreConfig, str(JOBS / "score.yaml"), {}).head_mode == "both"
    keys = [line[2:] for line in text.splitlines() if line.startswith("# ") and ": " in line.split("#")[1]]
    commented = yaml.safe_load("\n".join(key for key in keys if key.split(":")[0].isidentifier()))
    assert len(commented) == 10
    load_config(ScoreConfig, str(JOBS / "score.yaml"), commented)
