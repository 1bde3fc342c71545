"""The configs in jobs/ are ones that the commands take."""

from pathlib import Path

import pytest
import yaml

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.config.loading import load_config
from sarm_ray.config.score import ScoreConfig
from sarm_ray.config.train import TrainConfig

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.mark.parametrize(
    ("name", "kind", "num_commented"),
    [("score.yaml", ScoreConfig, 14), ("train.yaml", TrainConfig, 13), ("annotate.yaml", AnnotateConfig, 8)],
)
def test_a_config_also_with_every_comment_taken_as_a_key(name, kind, num_commented):
    text = (JOBS / name).read_text()
    load_config(kind, str(JOBS / name), {})
    keys = [line[2:] for line in text.splitlines() if line.startswith("# ") and ": " in line.split("#")[1]]
    commented = yaml.safe_load("\n".join(key for key in keys if key.split(":")[0].isidentifier()))
    assert len(commented) == num_commented
    load_config(kind, str(JOBS / name), commented)


def test_the_presets_in_train_yaml_are_the_defaults():
    config = load_config(TrainConfig, str(JOBS / "train.yaml"), {})
    bare = TrainConfig(dataset=config.dataset, output_dir=config.output_dir)
    assert config == bare
