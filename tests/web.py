"""A web server on this machine that counts what it is asked, and can be slow, broken or forgetful on purpose."""

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """Files by name, answered whole or by ranges.

    Args (all may be changed while it runs):
        files: name -> content.
        cut: how many of the next bodies come one byte short.
        tagged: whether it says by an ETag when a file has changed.
        gate: bodies wait until it is set.
        fetched: names of the bodies that were asked for.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files, self.cut, self.tagged, self.fetched = files, 0, True, []
        self.gate = threading.Event()
        self.gate.set()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                web.answer(self, body=False)

            def do_GET(self):
                web.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        name = request.path.lstrip("/")
        content = self.files.get(name)
        status, headers = 404 if content is None else 200, {}
        content = content or b""
        if self.tagged:
            headers["ETag"] = f'"{hashlib.md5(content).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if status == 200 and body:
            self.fetched.append(name)
            self.gate.wait(60)
            if asked:
                first, last = int(asked[1]), int(asked[2] or len(content) - 1)
                status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(content)}"
                content = content[first : last + 1]
            if self.cut:
                self.cut, content = self.cut - 1, content[:-1]
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever asked was killed
                request.wfile.write(content)


@contextlib.contextmanager
def serve_files(files: dict[str, bytes]) -> Iterator[Web]:
    web = Web(files)
    yield web
    web.gate.set()
    web.server.shutdown()
    web.server.server_close()
