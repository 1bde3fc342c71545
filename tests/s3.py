"""An S3 server on this machine (moto's, over real HTTP), and the environment of a process that knows it alone."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "bucket"


def s3_environment(endpoint: str, **settings: str) -> dict[str, str]:
    """Variables of a process that uses this server."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    own = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return kept | own | settings


class S3:
    """A running server with one empty bucket."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="someone",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def delete(self, *keys: str) -> None:
        for key in keys:
            self.client.delete_object(Bucket=BUCKET, Key=key)

    def upload(self, folder: Path, prefix: str) -> str:
        """Copy a folder into the bucket; its URL."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def download(self, prefix: str, folder: Path) -> Path:
        """Copy what is below a prefix onto the disk."""
        for key in self.keys(prefix):
            target = folder / key.removeprefix(prefix).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.get(key))
        return folder

    def num_uploads(self) -> int:
        """Uploads that have begun and not ended."""
        return len(self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


@contextlib.contextmanager
def serve_s3() -> Iterator[S3]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3(f"http://{host}:{port}")
    finally:
        server.stop()


@contextlib.contextmanager
def s3_settings(endpoint: str, **settings: str) -> Iterator[None]:
    """This process in that environment; s3fs reads it when it opens its first connection."""
    from s3fs import S3FileSystem

    environment = s3_environment(endpoint, **settings)
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key not in environment]:
            patch.delenv(key)
        for key, value in environment.items():
            if value == "":
                patch.delenv(key, raising=False)
            else:
                patch.setenv(key, value)
        S3FileSystem.clear_instance_cache()
        yield
        S3FileSystem.clear_instance_cache()
