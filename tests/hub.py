"""As much of the Hugging Face Hub as a download needs, over real HTTP on this machine, and a record of what was asked."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by name, `datasets/owner/name` or `owner/name` for models; `fetched` lists `repository:file`."""

    def __init__(self, repositories: dict[str, Path]):
        self.repositories, self.fetched = repositories, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, body=True)

            def do_HEAD(self):
                hub.answer(self, body=False)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def paths(self, repository: str) -> dict[str, Path]:
        root = self.repositories[repository]
        return {str(p.relative_to(root)): p for p in sorted(root.rglob("*")) if p.is_file()}

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        status, headers, content = 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        path = unquote(urlsplit(request.path).path)
        for repository in self.repositories:
            found = self.look_up(repository, path, body)
            if found is not None:
                status, (headers, content) = 200, found
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        if body:
            request.wfile.write(content)

    def look_up(self, repository: str, path: str, body: bool) -> tuple[dict[str, str], bytes] | None:
        is_dataset = repository.startswith("datasets/")
        api, files = f"/api/{repository if is_dataset else f'models/{repository}'}", f"/{repository}/resolve/"
        paths = self.paths(repository)
        if path == api or path.startswith(f"{api}/revision/"):
            entry = {"id": repository.removeprefix("datasets/"), "sha": COMMIT, "private": False, "tags": []}
            siblings = [{"rfilename": name} for name in paths]
            return {}, json.dumps(entry | {"downloads": 0, "likes": 0, "siblings": siblings}).encode()
        if path.startswith(f"{api}/tree/"):
            tree = [
                {"type": "file", "oid": f"{number:040x}", "size": file.stat().st_size, "path": name}
                for number, (name, file) in enumerate(paths.items())
            ]
            return {}, json.dumps(tree).encode()
        name = path[len(files) :].partition("/")[2] if path.startswith(files) else None
        if name not in paths:
            return None
        self.fetched += [f"{repository}:{name}"] if body else []
        return {"X-Repo-Commit": COMMIT, "ETag": f'"{list(paths).index(name):040x}"'}, paths[name].read_bytes()


@contextlib.contextmanager
def serve_hub(repositories: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(repositories)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def hub_environment(endpoint: str, home: Path, **settings: str) -> dict[str, str]:
    """The environment of a process that knows this Hub alone; the hub's library reads it at import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | settings
