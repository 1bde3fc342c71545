"""One command = one frozen config: YAML file, overridden by flags, checked here, written beside the output."""

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from sarm_ray.errors import ConfigError, nearest

Config = TypeVar("Config")
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What `sarm-ray score` does.

    Args:
        dataset: local folder, fsspec URL or Hub id of a LeRobotDataset.
        model: SARM checkpoint: local folder or Hub id.
        output: the progress file; None is sarm_progress.parquet in a writable local dataset, else in ./<name>/.
        head_mode: `sparse`, `dense` or `both`. A single-stage checkpoint has the sparse head alone.
        stride: compute every stride-th frame and the last one, interpolate between.
        episodes: Python-like selection of episodes, `0:10,15`; None is all.
        image_key: the camera; None where there is one, or the one the model was trained on.
        state_key: None is the checkpoint's.
        task: task text for all episodes instead of their own.
        state_stats: normalise states by the `checkpoint`'s statistics or the `dataset`'s; None prefers the checkpoint's.
        encoder: image encoder; None is the checkpoint's.
        precision: compute precision; `auto` is bf16 where the hardware has it. `fp32` also stores features in float32.
        cache: where features are kept, any fsspec path; None is beside a writable dataset, else the user's cache.
        stage_probabilities: also write stage_probabilities.parquet.
        allow_failures: exit with 0 while at most this many chunks failed.
        overwrite: replace an output that exists.
        dry_run: print the plan and run nothing.
        revision: of a Hub dataset.
        address: Ray cluster to join; None is the job's own cluster, else a local one.
    """

    dataset: str
    model: str
    output: str | None = None
    head_mode: Literal["sparse", "dense", "both"] = "sparse"
    stride: int = 1
    episodes: str | None = None
    image_key: str | None = None
    state_key: str | None = None
    task: str | None = None
    state_stats: Literal["checkpoint", "dataset"] | None = None
    encoder: str | None = None
    precision: Precision = "auto"
    cache: str | None = None
    stage_probabilities: bool = False
    allow_failures: int = 0
    overwrite: bool = False
    dry_run: bool = False
    revision: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigError(f"stride must be at least 1, not {self.stride}")
        if self.allow_failures < 0:
            raise ConfigError(f"allow_failures must not be negative, not {self.allow_failures}")


def load_config(kind: type[Config], file: str | None, flags: dict[str, Any]) -> Config:
    """A config from a YAML file and flags; flags win.

    Args:
        kind: a frozen dataclass.
        file: YAML mapping; keys with `-` or `_`.
        flags: field -> value; those given on the command line.

    Raises:
        ConfigError: unreadable file, unknown key (the nearest known one is named), wrong type or value, missing key.
    """
    values = {**(_read_yaml(file) if file else {}), **flags}
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{file}: unknown key {key!r}{nearest(key, hints)}")
        if not _fits(value, hints[key]):
            raise ConfigError(f"{key} must be {_describe(hints[key])}, not {value!r}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{missing[0]} is missing; give it as an argument or in --config")
    return kind(**values)


def dump_config(config: Any) -> str:
    """The resolved config as YAML that `--config` reads back to an equal one."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a mapping of keys to values, found {type(raw).__name__}")
    return {str(key).replace("-", "_"): value for key, value in raw.items()}


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, choice) for choice in typing.get_args(hint))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_describe(choice) for choice in typing.get_args(hint) if choice is not type(None))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))
