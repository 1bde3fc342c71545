"""The configs in jobs/ are ones that the commands take."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.config.loading import load_config
from sarm_ray.config.score import ScoreConfig
from sarm_ray.config.serve import ServeConfig, load_serve_config
from sarm_ray.config.train import TrainConfig

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.mark.parametrize(
    ("name", "kind", "num_commented"),
    [("score.yaml", ScoreConfig, 15), ("train.yaml", TrainConfig, 17), ("annotate.yaml", AnnotateConfig, 8)],
)
def test_a_config_also_with_every_comment_taken_as_a_key(name, kind, num_commented):
    text = (JOBS / name).read_text()
    load_config(kind, str(JOBS / name), {})
    keys = [line[2:] for line in text.splitlines() if line.startswith("# ") and ": " in line.split("#")[1]]
    commented = yaml.safe_load("\n".join(key for key in keys if key.split(":")[0].isidentifier()))
    assert len(commented) == num_commented
    alone = {key: commented.pop(key) for key in ("follow",) if key in commented}  # goes with none of some others
    load_config(kind, str(JOBS / name), alone)
    load_config(kind, str(JOBS / name), commented)


def test_the_presets_in_train_yaml_are_the_defaults():
    config = load_config(TrainConfig, str(JOBS / "train.yaml"), {})
    bare = TrainConfig(dataset=config.dataset, output_dir=config.output_dir)
    assert config == bare


def test_serve_yaml_has_every_option_and_is_taken_by_both():
    """By `serve deploy`, and by `sarm-ray serve --config`."""
    from ray.serve.schema import ServeDeploySchema

    file = str(JOBS / "serve.yaml")
    given = yaml.safe_load(Path(file).read_text())
    schema = ServeDeploySchema.model_validate(given)
    assert (schema.http_options.host, schema.http_options.port, schema.proxy_location) == ("0.0.0.0", 8000, "EveryNode")
    (application,) = schema.applications
    assert (application.name, application.route_prefix) == ("sarm_ray", "/")
    assert application.import_path == "sarm_ray.pipelines.serving.application:app"
    config = load_serve_config(file, {})
    assert (config.host, config.port, config.token_file) == ("0.0.0.0", 8000, "/etc/sarm-ray/token")
    assert load_serve_config(file, {"port": 9000, "host": "127.0.0.1"}).port == 9000

    lines = [line.strip()[2:] for line in Path(file).read_text().splitlines() if line.startswith("      # ")]
    commented = yaml.safe_load("\n".join(lines))
    everything = {**application.args, **commented}
    elsewhere = {"host", "port", "address"}
    assert set(everything) | elsewhere == {field.name for field in dataclasses.fields(ServeConfig)}
    bounds = {key: value for key, value in commented.items() if key.startswith("max_") or key.endswith("_s")}
    bare = ServeConfig(model=application.args["model"])
    assert {key: getattr(bare, key) for key in bounds} == bounds
    load_config(ServeConfig, None, everything)
