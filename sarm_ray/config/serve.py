"""What `sarm-ray serve` does."""

import ipaddress
from dataclasses import dataclass
from typing import Literal

from sarm_ray.config.loading import require
from sarm_ray.errors import ConfigError


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
        require(0 <= self.port <= 65535, f"port must be within 0 and 65535, not {self.port}")
        least, most = self.replicas
        require(
            1 <= least <= most, f"num_replicas must be N or MIN:MAX with 1 <= MIN <= MAX, not {self.num_replicas!r}"
        )
        for name in ("sessions_per_replica", "max_sessions", "max_image_pixels", "max_message_bytes"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("score_hz", "max_frames_per_s", "max_wait_s", "idle_s"):
            require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")
        require(self.drain_s >= 0, f"drain_s must not be negative, not {self.drain_s}")
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
