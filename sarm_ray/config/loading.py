"""One command = one frozen config: YAML file, overridden by flags, checked here, written beside the output."""

import contextlib
import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from sarm_ray.errors import ConfigError, nearest

Config = TypeVar("Config")


def as_tuple(value: str | list[str] | None) -> tuple[str, ...]:
    """None, one or several as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def check_datasets(datasets: tuple[str, ...]) -> None:
    """Raise a ConfigError where there is none, or one twice."""
    require(bool(datasets), "dataset is missing; give it as an argument or in --config")
    require(len(set(datasets)) == len(datasets), f"a dataset is given twice: {', '.join(datasets)}")


def check_cameras(cameras: tuple[str, ...]) -> None:
    """Raise a ConfigError where one is given twice."""
    require(len(set(cameras)) == len(cameras), f"a camera is given twice: {', '.join(cameras)}")


def require(holds: bool, otherwise: str) -> None:
    """Raise a ConfigError unless something holds."""
    if not holds:
        raise ConfigError(otherwise)


def load_config(kind: type[Config], file: str | None, flags: dict[str, Any]) -> Config:
    """A config from a YAML file and flags; flags win.

    Args:
        kind: a frozen dataclass.
        file: YAML mapping; keys with `-` or `_`.
        flags: field -> value; those given on the command line.

    Raises:
        ConfigError: unreadable file, unknown key (the nearest known one is named), wrong type or value, missing key.
    """
    values = read_yaml(file) if file else {}
    for key, value in flags.items():
        nested = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if nested else value
    return _build(kind, values, f"{file}: " if file else "", "")


class _Loader(yaml.SafeLoader):
    """Safe YAML, in which 1:8 is text. YAML 1.1 takes it for a number in base 60, which is 68."""


_EXPONENT = r"(?:[eE][-+][0-9]+)?"
_NUMBERS = {
    "int": r"[-+]?(?:0b[01_]+|0[0-7_]*|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$",
    "float": rf"[-+]?(?:[0-9][0-9_]*\.[0-9_]*{_EXPONENT}|\.[0-9][0-9_]*{_EXPONENT}|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, fits) for tag, fits in known if tag.rpartition(":")[2] not in _NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list("-+0123456789."))


def _read(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def apply_settings(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Flags with `--set KEY=VALUE` put in: dotted keys reach into options, values are YAML, and 1e-4 is a number.

    Raises:
        ConfigError: no `=`, a dotted key into a plain value, or a value that is not YAML.
    """
    result = dict(values)
    for setting in settings:
        key, equals, text = setting.partition("=")
        require(bool(equals and key), f"--set takes KEY=VALUE, not {setting!r}")
        *path, name = key.strip().replace("-", "_").split(".")
        place = result
        for step in path:
            inside = place.get(step, {})
            require(isinstance(inside, dict), f"--set {key}: {step} has no options")
            place[step] = dict(inside)
            place = place[step]
        try:
            place[name] = _read(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: {text!r} is not YAML") from None
        if isinstance(place[name], str):
            with contextlib.suppress(ValueError):  # YAML 1.1 takes 1e-4 for text
                place[name] = float(text)
    return result


def _build(kind: type[Config], values: dict[str, Any], where: str, prefix: str) -> Config:
    """A config, and the options in it, from nested mappings."""
    hints = typing.get_type_hints(kind)
    ready: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}unknown key {prefix + key!r}{nearest(key, hints)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            ready[key] = _build(typing.cast(type, hint), value, where, f"{prefix}{key}.")
        elif _fits(value, hint):
            ready[key] = value
        else:
            raise ConfigError(f"{prefix}{key} must be {_describe(hint)}, not {value!r}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    missing = [name for name in required if name not in ready]
    if missing:
        raise ConfigError(f"{missing[0]} is missing; give it as an argument or in --config")
    return kind(**ready)


def dump_config(config: Any) -> str:
    """The resolved config as YAML that `--config` reads back to an equal one."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def read_yaml(file: str) -> dict[str, Any]:
    """A file's mapping, `-` in its keys as `_`.

    Raises:
        ConfigError: unreadable, or no mapping.
    """
    try:
        raw = _read(Path(file).read_text())
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
    if origin is list:
        return isinstance(value, list) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_describe(choice) for choice in typing.get_args(hint) if choice is not type(None))
    if typing.get_origin(hint) is list:
        return "a list of it"
    if dataclasses.is_dataclass(hint):
        return "a mapping"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))
