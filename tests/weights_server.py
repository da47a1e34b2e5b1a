"""A web server on localhost that misbehaves in the ways weights servers and the proxies before them do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Resource:
    """What the server has under one path, and how it serves it.

    Attributes:
        content: The bytes.
        content_type: Header.
        dies_after: Bytes after which the connection is cut, one entry per request, first come first served.
        resumes: Whether it answers Range requests.
        etag: Validator; empty for none.
        status: Answer instead of 200.
        drips: Send one byte after the other without end, so many seconds apart; None sends the content.
        endless: Say no length, and never stop.
    """

    content: bytes
    content_type: str = "application/octet-stream"
    dies_after: list[int] = field(default_factory=list)
    resumes: bool = True
    etag: str = '"v1"'
    status: int = 200
    drips: float | None = None
    endless: bool = False


@dataclass
class Server:
    """A running server: its address, what it serves, and the Range headers it was asked with."""

    url: str
    resources: dict[str, Resource]
    ranges: list[str | None]


@contextmanager
def serving(resources: dict[str, Resource]) -> Iterator[Server]:
    """Run a server in a thread; names are paths without the slash."""
    ranges: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ranges.append(self.headers.get("Range"))
            resource = resources.get(self.path.lstrip("/"))
            if resource is None:
                self.send_error(404)
                return
            if resource.status != 200:
                self.send_error(resource.status)
                return
            start, fresh = 0, self.headers.get("If-Range") in (None, resource.etag)
            if resource.resumes and fresh and (asked := self.headers.get("Range")):
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(resource.content):
                    self.send_error(416)
                    return
            if resource.endless or resource.drips is not None:
                self._never_end(resource)
                return
            body = resource.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(resource.content) - 1}/{len(resource.content)}"
                )
            self.send_header("Content-Type", resource.content_type)
            self.send_header("Content-Length", str(len(body)))
            if resource.etag:
                self.send_header("ETag", resource.etag)
            self.end_headers()
            cut = resource.dies_after.pop(0) if resource.dies_after else len(body)
            self.wfile.write(body[:cut])
            self.wfile.flush()
            if cut < len(body):
                self.close_connection = True

        def _never_end(self, resource: Resource) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", resource.content_type)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(resource.content if resource.drips is None else b"x")
                    time.sleep(resource.drips or 0)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _running(Handler) as url:
        yield Server(url, resources, ranges)


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving_hub(repository: str, files: dict[str, bytes]) -> Iterator[str]:
    """As much of a model hub as it takes to fetch a snapshot of one repository; yields its address."""
    commit = "a" * 40

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            headers = {"X-Repo-Commit": commit}
            if path.startswith(f"/api/models/{repository}/tree/"):
                tree = [
                    {"type": "file", "path": n, "size": len(c), "oid": "b" * 40} for n, c in files.items()
                ]
                content = json.dumps(tree).encode()
            elif path.startswith(f"/api/models/{repository}"):
                facts = {"id": repository, "sha": commit, "private": False, "tags": [], "downloads": 0}
                content = json.dumps(facts | {"siblings": [{"rfilename": name} for name in files]}).encode()
            elif path.startswith(f"/{repository}/resolve/") and path.rpartition("/")[2] in files:
                content = files[path.rpartition("/")[2]]
                headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _running(Handler) as url:
        yield url
