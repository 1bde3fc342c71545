"""Errors of remote stores in our words: the one place that knows what botocore, aiohttp and the others raise.

FileNotFoundError         stays: callers know what a missing file means to them
StoreError                the store does not let us in: no credentials or permission, no such bucket, no answer
StoreInterruptedError     an exchange that broke off; also an OSError, so that it can count against one file
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import IO, Any

from sarm_ray.errors import StoreError, StoreInterruptedError

# Exceptions that are no OSError, by the module that defines them; only modules that are loaded can have raised one.
_FOREIGN = {
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "aiohttp": ("ClientError",),
    "httpx2": ("HTTPError",),
    "httpx": ("HTTPError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "gcsfs.retry": ("HttpError",),
}
# Those of them that tell of an exchange that had begun.
_INTERRUPTED = {
    "botocore.exceptions": ("HTTPClientError", "IncompleteReadError"),
    "aiohttp": ("ClientPayloadError", "ServerDisconnectedError"),
    "httpx2": ("ReadError", "ReadTimeout", "RemoteProtocolError"),
    "httpx": ("ReadError", "ReadTimeout", "RemoteProtocolError"),
}
_WAY_OUT = {
    "s3": "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, the address from "
    "AWS_ENDPOINT_URL, on every node",
    "gs": "credentials come from GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`, on every node",
    "hf": "the token comes from HF_TOKEN or `hf auth login`, on every node",
}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


@contextlib.contextmanager
def explained(location: str) -> Iterator[None]:
    """What a store's library raises inside comes out as one line that names the location and the way out.

    Raises:
        StoreError, StoreInterruptedError: see above.
    """
    try:
        yield
    except FileNotFoundError as error:
        if _error_code(error) == "NoSuchBucket":
            bucket = location.split("://", 1)[-1].split("/", 1)[0]
            raise StoreError(f"{location}: there is no bucket {bucket!r}") from error
        raise
    except FileExistsError:
        raise
    except PermissionError as error:
        raise StoreError(f"{location}: no permission ({one_line(error)}){_way_out(location)}") from error
    except _loaded(_INTERRUPTED) as error:
        raise StoreInterruptedError(f"{location}: {one_line(error)}") from error
    except foreign_errors() as error:
        raise StoreError(f"{location}: {one_line(error)}{_way_out(location)}") from error
    except OSError as error:
        if isinstance(error, StoreInterruptedError):
            raise
        raise StoreInterruptedError(f"{location}: {one_line(error)}") from error


class ExplainedFile(io.RawIOBase):
    """A remote file whose errors are ours while it is read, too."""

    def __init__(self, location: str, stream: IO[bytes]):
        self.location, self.stream = location, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        with explained(self.location):
            return self.stream.read(-1 if size is None else size)

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def close(self) -> None:
        self.stream.close()
        super().close()


def foreign_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the HTTP and cloud libraries that are loaded."""
    return _loaded(_FOREIGN)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's words on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def _loaded(classes: dict[str, tuple[str, ...]]) -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[m], name) for m, names in classes.items() if m in sys.modules for name in names)


def _way_out(location: str) -> str:
    scheme = location.split("://", 1)[0]
    hint = _WAY_OUT.get({"s3a": "s3", "gcs": "gs"}.get(scheme, scheme))
    return f"; {hint}" if hint else ""


def _error_code(error: BaseException) -> str | None:
    """S3's error code of an error that s3fs has translated."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
