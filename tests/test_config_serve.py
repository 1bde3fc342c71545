"""What `sarm-ray serve` is told: bounds, who may come in, and the two kinds of file."""

import math
import re

import pytest
import yaml

from sarm_ray.config.loading import dump_config, load_config
from sarm_ray.config.serve import ServeConfig, load_serve_config
from sarm_ray.errors import ConfigError

OPEN = "can be reached from other machines: give --token-file, or --insecure to let everybody in"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"port": 0}, "port must be within 1 and 65535, not 0"),
        ({"port": 65536}, "port must be within 1 and 65535, not 65536"),
        ({"num_replicas": 0}, "num_replicas must be N or MIN:MAX with 1 <= MIN <= MAX, not 0"),
        ({"num_replicas": "3:2"}, "num_replicas must be N or MIN:MAX with 1 <= MIN <= MAX, not '3:2'"),
        ({"num_replicas": "many"}, "num_replicas must be N or MIN:MAX, not 'many'"),
        ({"num_replicas": "1:2:3"}, "num_replicas must be N or MIN:MAX, not '1:2:3'"),
        ({"sessions_per_replica": 0}, "sessions_per_replica must be at least 1, not 0"),
        ({"max_sessions": 0}, "max_sessions must be at least 1, not 0"),
        ({"max_image_pixels": 0}, "max_image_pixels must be at least 1, not 0"),
        ({"max_message_bytes": 2**24 + 1}, "max_message_bytes must be at most 16777216, not 16777217"),
        ({"score_hz": 0.0}, "score_hz must be above 0 and finite, not 0.0"),
        ({"score_hz": math.nan}, "score_hz must be above 0 and finite, not nan"),
        ({"max_frames_per_s": math.inf}, "max_frames_per_s must be above 0 and finite, not inf"),
        ({"max_wait_s": -1.0}, "max_wait_s must be above 0 and finite, not -1.0"),
        ({"idle_s": math.inf}, "idle_s must be above 0 and finite, not inf"),
        ({"drain_s": -0.1}, "drain_s must be 0 or more and finite, not -0.1"),
        ({"drain_s": math.nan}, "drain_s must be 0 or more and finite, not nan"),
        ({"precision": "fp16"}, "precision must be auto or fp32 or bf16, not 'fp16'"),
        ({"max_session": 1}, "unknown key 'max_session'; did you mean 'max_sessions'?"),
        ({"host": "0.0.0.0"}, f"host 0.0.0.0 {OPEN}"),
        ({"host": "::"}, f"host :: {OPEN}"),
        ({"host": "192.168.0.7"}, f"host 192.168.0.7 {OPEN}"),
        ({"host": "gpu-box"}, f"host gpu-box {OPEN}"),
        ({"host": ""}, f"host  {OPEN}"),
        ({"host": "localhost.example.org"}, f"host localhost.example.org {OPEN}"),
    ],
)
def test_what_is_wrong_is_named(values, words):
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}$"):
        load_config(ServeConfig, None, {"model": "m", **values})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_alone_needs_no_token(host):
    assert ServeConfig(model="m", host=host).is_loopback


@pytest.mark.parametrize("how", [{"token_file": "t"}, {"insecure": True}])
def test_others_are_let_in_with_a_token_or_on_purpose(how):
    assert not ServeConfig(model="m", host="0.0.0.0", **how).is_loopback


@pytest.mark.parametrize(("given", "replicas"), [(2, (2, 2)), ("2", (2, 2)), ("1:8", (1, 8)), ("3:3", (3, 3))])
def test_replicas(given, replicas):
    assert load_config(ServeConfig, None, {"model": "m", "num_replicas": given}).replicas == replicas


def write(folder, content) -> str:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def deployed(args, **http):
    return {"http_options": http, "applications": [{"name": "sarm_ray", "args": args}]}


def test_a_file_of_flags_like_other_commands_take(tmp_path):
    config = ServeConfig(model="m", port=9001, num_replicas="1:2", record="log")
    (tmp_path / "flags.yaml").write_text(dump_config(config))
    assert load_serve_config(str(tmp_path / "flags.yaml"), {}) == config
    assert load_serve_config(None, {"model": "m"}) == ServeConfig(model="m")


def test_a_file_for_serve_deploy_and_flags_over_it(tmp_path):
    file = write(tmp_path, deployed({"model": "m", "score_hz": 5}, host="127.0.0.1", port=9001, keep_alive_timeout_s=5))
    assert load_serve_config(file, {}) == ServeConfig(model="m", score_hz=5, port=9001)
    assert load_serve_config(file, {"port": 9002, "model": "n"}) == ServeConfig(model="n", score_hz=5, port=9002)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"applications": []}, "expected one application, and http_options as a mapping"),
        ({"applications": "sarm_ray"}, "expected one application, and http_options as a mapping"),
        (deployed({"model": "m", "token_file": "t"}) | {"http_options": [1]}, "http_options as a mapping"),
        (deployed({"model": "m", "host": "::1"}), "host has no place in args; Serve listens where http_options say"),
        (deployed({"model": "m"}, host="0.0.0.0"), f"host 0.0.0.0 {OPEN}"),
        (deployed({"modal": "m"}), "unknown key 'modal'; did you mean 'model'?"),
        (deployed(["m"]), "args must be a mapping"),
    ],
)
def test_a_file_for_serve_deploy_that_cannot_be(tmp_path, content, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_serve_config(write(tmp_path, content), {})
