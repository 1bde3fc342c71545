"""As much of the Hugging Face Hub as downloads and commits need, over real HTTP on this machine, and a record of both."""

import base64
import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories on this machine.

    Args:
        repositories: `datasets/owner/name`, or `owner/name` for models, -> its files; several folders are its branches.
        tokens: the tokens that it knows, and whether they may write.

    `fetched` lists `repository:file`; `commits` has (repository, branch, message, {path: content}) of what was pushed.
    """

    def __init__(self, repositories: dict[str, Path | dict[str, Path]], tokens: dict[str, bool] | None = None):
        self.repositories = {
            name: files if isinstance(files, dict) else {"main": files} for name, files in repositories.items()
        }
        self.tokens = tokens or {}
        self.fetched: list[str] = []
        self.commits: list[tuple[str, str, str, dict[str, bytes]]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, hub.read, body=True)

            def do_HEAD(self):
                hub.answer(self, hub.read, body=False)

            def do_POST(self):
                hub.answer(self, hub.write, body=True)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def paths(self, repository: str) -> dict[str, Path]:
        """The files of its main branch."""
        return _files(self.repositories[repository]["main"])

    def answer(self, request: BaseHTTPRequestHandler, respond: Callable, body: bool) -> None:
        content = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        status, headers, answer = 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        path = unquote(urlsplit(request.path).path)
        for repository in self.repositories:
            found = respond(repository, path, request, content)
            if found is not None:
                status, headers, answer = found
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(answer)))
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        if body:
            request.wfile.write(answer)

    def read(self, repository: str, path: str, request: BaseHTTPRequestHandler, _: bytes) -> tuple | None:
        api, files = _api(repository), f"/{repository}/resolve/"
        if path == api or path.startswith(f"{api}/revision/"):
            found = self._revision(repository, path.removeprefix(api).removeprefix("/revision/") or "main")
            if found is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            commit, paths, _ = found
            entry = {"id": repository.removeprefix("datasets/"), "sha": commit, "private": False, "tags": []}
            siblings = [{"rfilename": name} for name in paths]
            return 200, {}, json.dumps(entry | {"downloads": 0, "likes": 0, "siblings": siblings}).encode()
        for start in (f"{api}/tree/", files):
            found = self._revision(repository, path[len(start) :]) if path.startswith(start) else None
            if found is None:
                continue
            commit, paths, rest = found
            if start != files:
                tree = _tree(paths, rest, "recursive=true" in request.path.lower())
                if tree or not rest:
                    return 200, {}, json.dumps(tree).encode()
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            if rest in paths:
                self.fetched += [f"{repository}:{rest}"] if request.command == "GET" else []
                headers = {"X-Repo-Commit": commit, "ETag": f'"{_content_id(paths[rest])}"'}
                return 200, headers, paths[rest].read_bytes()
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"{}"
        return None

    def write(self, repository: str, path: str, request: BaseHTTPRequestHandler, content: bytes) -> tuple | None:
        """What a commit needs: every file is to be sent inside it, and what a model card says of itself is in order."""
        if path == "/api/validate-yaml":
            return 200, {}, json.dumps({"errors": [], "warnings": []}).encode()
        action, _, branch = path.removeprefix(f"{_api(repository)}/").partition("/")
        if not path.startswith(f"{_api(repository)}/") or action not in ("preupload", "commit"):
            return None
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
        if not self.tokens[token]:
            return 403, {"X-Error-Message": "Forbidden: you must use a write token"}, b"{}"
        if branch not in self.repositories[repository]:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if action == "preupload":
            wanted = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            return 200, {}, json.dumps({"files": wanted}).encode()
        lines = [json.loads(line) for line in content.splitlines()]
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
        self.commits.append((repository, branch, lines[0]["value"]["summary"], files))
        url = f"{self.url}/{repository}/commit/{COMMIT}"
        return 200, {}, json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode()

    def _revision(self, repository: str, path: str) -> tuple[str, dict[str, Path], str] | None:
        """Commit, files and rest of a path that begins with a branch or a commit."""
        for number, (branch, root) in enumerate(self.repositories[repository].items()):
            commit = f"{int(COMMIT, 16) + number:040x}"
            for name in (branch, commit):
                if path == name or path.startswith(f"{name}/"):
                    return commit, _files(root), path[len(name) + 1 :]
        return None


def _api(repository: str) -> str:
    return f"/api/{repository}" if repository.startswith("datasets/") else f"/api/models/{repository}"


def _tree(paths: dict[str, Path], folder: str, recursive: bool) -> list[dict]:
    """Files and folders below a folder, or right inside it."""
    start = f"{folder}/" if folder else ""
    inside = {name: file for name, file in paths.items() if name.startswith(start)}
    folders = {str(parent) for name in inside for parent in Path(name).parents if str(parent).startswith(start)}
    tree = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders - {".", folder})]
    tree += [
        {"type": "file", "oid": _content_id(file), "size": file.stat().st_size, "path": name}
        for name, file in inside.items()
    ]
    return [entry for entry in tree if recursive or "/" not in entry["path"][len(start) :]]


def _files(root: Path) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


def _content_id(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def serve_hub(repositories: dict[str, Path | dict[str, Path]], tokens: dict[str, bool] | None = None) -> Iterator[Hub]:
    hub = Hub(repositories, tokens)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def hub_environment(endpoint: str, home: Path, **settings: str) -> dict[str, str]:
    """The environment of a process that knows this Hub alone; the hub's library reads it at import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | settings
