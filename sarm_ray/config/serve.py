"""What `sarm-ray serve` does."""

import ipaddress
import math
from dataclasses import dataclass
from typing import Any, Literal

from sarm_ray.config.loading import load_config, read_yaml, require
from sarm_ray.errors import ConfigError

MAX_MESSAGE_BYTES = 16 * 2**20  # uvicorn, under Ray Serve, cuts a socket that a larger message comes on


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What `sarm-ray serve` does.

    Args:
        model: SARM checkpoint: local folder or Hub id.
        encoder: image encoder; None is the checkpoint's.
        dataset: whose statistics normalise states, for a checkpoint that has none.
        host, port: where to listen. Anything but this machine's own loopback needs a token, or `insecure`.
        num_replicas: `2`, or `1:8`: as many as the running sessions need.
        sessions_per_replica: sessions that one replica is meant to hold; with MIN:MAX more replicas are started above.
        score_hz: frames of a session that are scored in a second, at most.
        precision: `auto` is bf16 where the hardware has it.
        token_file: file whose first line every client must present.
        insecure: listen elsewhere without a token.
        record: folder (any fsspec path) to which finished rollouts are appended; None records nothing.
        max_sessions: that one replica takes at all.
        max_image_pixels, max_message_bytes, max_frames_per_s: bounds of what one client sends.
        max_wait_s: frames that wait longer are dropped, the oldest first.
        idle_s: a session without frames for this long is ended.
        drain_s: how long running sessions have to move when the server stops.
        address: Ray cluster to join; None is the job's own cluster, else a local one.
    """

    model: str
    encoder: str | None = None
    dataset: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    num_replicas: str | int = "1"
    sessions_per_replica: int = 64
    score_hz: float = 10.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    token_file: str | None = None
    insecure: bool = False
    record: str | None = None
    max_sessions: int = 256
    max_image_pixels: int = 2**21
    max_message_bytes: int = 8 * 2**20
    max_frames_per_s: float = 120.0
    max_wait_s: float = 0.5
    idle_s: float = 60.0
    drain_s: float = 10.0
    address: str | None = None

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, f"port must be within 1 and 65535, not {self.port}")
        least, most = self.replicas
        require(
            1 <= least <= most, f"num_replicas must be N or MIN:MAX with 1 <= MIN <= MAX, not {self.num_replicas!r}"
        )
        for name in ("sessions_per_replica", "max_sessions", "max_image_pixels", "max_message_bytes"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        most = MAX_MESSAGE_BYTES
        require(
            self.max_message_bytes <= most,
            f"max_message_bytes must be at most {most}, not {self.max_message_bytes}",
        )
        for name in ("score_hz", "max_frames_per_s", "max_wait_s", "idle_s"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be above 0 and finite, not {value}")
        require(0 <= self.drain_s < math.inf, f"drain_s must be 0 or more and finite, not {self.drain_s}")
        require(
            self.token_file is not None or self.insecure or self.is_loopback,
            f"host {self.host} can be reached from other machines: give --token-file, or --insecure to let everybody in",
        )

    @property
    def replicas(self) -> tuple[int, int]:
        """Least and most replicas."""
        least, _, most = str(self.num_replicas).partition(":")
        try:
            return int(least), int(most or least)
        except ValueError:
            raise ConfigError(f"num_replicas must be N or MIN:MAX, not {self.num_replicas!r}") from None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_serve_config(file: str | None, flags: dict[str, Any]) -> ServeConfig:
    """A config from flags and a file: a mapping of flags like every other command's, or one for `serve deploy`.

    Of the latter count the application's args, and where it listens.

    Raises:
        ConfigError: see `load_config`; a `serve deploy` file with several applications.
    """
    whole = read_yaml(file) if file else {}
    if "applications" not in whole:
        return load_config(ServeConfig, file, flags)
    applications, http = whole["applications"], whole.get("http_options") or {}
    alone = isinstance(applications, list) and len(applications) == 1 and isinstance(applications[0], dict)
    require(alone and isinstance(http, dict), f"{file}: expected one application, and http_options as a mapping")
    args = applications[0].get("args") or {}
    require(isinstance(args, dict), f"{file}: the application's args must be a mapping")
    place = {key: http[key] for key in ("host", "port") if key in http}
    return load_config(ServeConfig, None, {**applied_args(args), **place, **flags})


def applied_args(args: dict[str, Any]) -> dict[str, Any]:
    """What may stand in an application's args: all but where it listens, which is `http_options` to Serve.

    Raises:
        ConfigError: host, port or address are among them.
    """
    for key in ("host", "port", "address"):
        require(
            key not in args, f"{key} has no place in args; Serve listens where http_options say, on its own cluster"
        )
    return args
