"""Who may talk to the server: a token where there is one, and no web page of somebody else's."""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sarm_ray.core.live_protocol import Refusal
from sarm_ray.errors import ConfigError

MIN_TOKEN_CHARACTERS = 16


@dataclass(frozen=True)
class Guard:
    """What is asked of a request.

    Args:
        digest: sha256 of the token; None where everybody may come in. The token itself never leaves its file: what Serve
            stores and logs of a deployment holds the digest alone.
        any_host: whether the server may be called by any name. Without a token a page of another site could otherwise reach
            it under a name of its own that it makes mean this machine (DNS rebinding).
    """

    digest: bytes | None = None
    any_host: bool = False

    def check_place(self, headers: Mapping[str, str]) -> None:
        """Raise a Refusal for a request that a page of another origin made, or that came under a strange name."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refusal("origin", "pages of another origin may not call this server", fatal=True)
        if self.digest is None and not self.any_host and not _is_plain(host):
            raise Refusal("origin", "call this server as localhost or by its address", fatal=True)

    def check_token(self, token: str | None) -> None:
        """Raise a Refusal unless the token is right."""
        if self.digest is None:
            return
        given = hashlib.sha256((token or "").encode("utf-8", "replace")).digest()
        if not hmac.compare_digest(given, self.digest):
            why = "this server needs a token" if not token else "the token is wrong"
            raise Refusal("token", f"{why}; send 'Authorization: Bearer TOKEN'", fatal=True)

    def knows(self, token: str | None) -> bool:
        """Whether a token is the right one, or none is needed."""
        try:
            self.check_token(token)
        except Refusal:
            return False
        return True

    def check(self, headers: Mapping[str, str]) -> None:
        """Both, with the token from the request's headers."""
        self.check_place(headers)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        self.check_token(token.strip() if scheme.lower() == "bearer" else None)


def read_token(path: str) -> bytes:
    """The sha256 of the token that stands in a file's first line.

    Raises:
        ConfigError: no such file, others may read it, the token is too short to keep anybody out, or no header can carry it.
    """
    file = Path(path).expanduser()
    try:
        mode, text = file.stat().st_mode, file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {path}: {getattr(error, 'strerror', None) or 'not text'}") from error
    if mode & 0o007:
        raise ConfigError(f"token file {path}: every user of this machine can read it; chmod 600 {path}")
    token = next(iter(text.splitlines()), "").strip()
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ConfigError(f"token file {path}: its first line must have at least {MIN_TOKEN_CHARACTERS} characters")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"token file {path}: the token may have letters, digits and signs of ASCII, and no spaces")
    return hashlib.sha256(token.encode()).digest()


def _is_plain(host: str) -> bool:
    """Whether a Host header names this machine by number or as localhost."""
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
