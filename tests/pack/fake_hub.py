"""A Hugging Face Hub on loopback that serves one local folder, and can be told to fail.

The real one cannot be made to gate a repository, to fill a disk or to drop a connection when a test asks for it. What
talks to it is the real huggingface_hub.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

SILENCE_S = 60
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """What the server serves, how it fails, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refusal: tuple[int, str] | None = None
        """Answer everything with this status and error code."""
        self.broken_after: int | None = None
        """Serve a file only up to this byte, then drop the connection."""
        self.silent_after: int | None = None
        """Serve a file only up to this byte, then say nothing more and keep the connection."""
        self.silent_at: str | None = None
        """Never answer a request whose path has this in it."""
        self.damaged: str | None = None
        """Serve the file of this name with one wrong byte."""
        self.requested: list[str] = []
        self.asked_for: list[str] = []
        """The files of which the size and hash were asked for."""
        self.held_back: tuple[str, int] | None = None
        """The end of the file of this name is served when it was asked for so often."""
        self.url = ""

    def files(self) -> dict[str, bytes]:
        """The repository's files."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


def wait_until(condition: Callable[[], bool]) -> None:
    """Up to a minute."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # what asked goes on to its lock


@contextmanager
def running_hub(folder: Path) -> Iterator[FakeHub]:
    """Serve ``folder`` as every repository."""
    hub = FakeHub(folder)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            if hub.silent_at is not None and hub.silent_at in self.path:
                time.sleep(SILENCE_S)
            elif hub.refusal is not None:
                status, code = hub.refusal
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", "Access to this model is restricted")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.path.startswith("/api/models/"):
                self.send_json(self.tree() if "/tree/" in self.path else {"id": "x/y", "sha": COMMIT, "siblings": []})
            else:
                self.send_file(unquote(self.path.partition("/resolve/")[2].partition("/")[2]), body=body)

        def tree(self) -> list[dict[str, object]]:
            return [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in hub.files().items()
            ]

        def send_json(self, document: object) -> None:
            data = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def send_file(self, name: str, *, body: bool) -> None:
            data = hub.files().get(name)
            if data is None:
                self.send_error(404)
                return
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            (hub.requested if body else hub.asked_for).append(f"{name}@{start}" if body else name)
            self.send_response(206 if start else 200)
            if name.endswith(".safetensors"):  # large file storage: the hash of the content, beside the storage's own
                self.send_header("X-Linked-ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if body:
                limit = hub.broken_after
                if name == hub.damaged:
                    data = bytes([data[0] ^ 1]) + data[1:]
                if hub.silent_after is not None and start + hub.silent_after < len(data):
                    self.wfile.write(data[start : start + hub.silent_after])
                    self.wfile.flush()
                    time.sleep(SILENCE_S)
                    return
                if hub.held_back is not None and name == hub.held_back[0]:
                    self.wfile.write(data[start : start + 1000])
                    wait_until(lambda held=hub.held_back: hub.asked_for.count(held[0]) >= held[1])
                    start += 1000
                self.wfile.write(data[start:limit])
                if limit is not None and limit < len(data):
                    self.wfile.flush()
                    self.connection.close()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
