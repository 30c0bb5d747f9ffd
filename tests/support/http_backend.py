"""C git's own HTTP server, `git http-backend`, on loopback: a source that others import from."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from support.git import ENVIRONMENT, git

__all__ = ["Backend", "backend"]


class Backend:
    """One server of the repositories below `root`.

    `instead`: asked first; True when it answered. `authorization`: what a request has to carry.
    """

    def __init__(self, root: Path, address: str, scheme: str = "http") -> None:
        self.root = root
        self.address = address
        self.scheme = scheme
        self.instead: Callable[[BaseHTTPRequestHandler], bool] | None = None
        self.authorization = ""
        self.seen: list[tuple[str, str]] = []  # path and Authorization of each request

    def url(self, name: str) -> str:
        return f"{self.scheme}://{self.address}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend: Backend

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, body: bytes) -> None:
        given = self.headers.get("Authorization", "")
        self.backend.seen.append((self.path, given))
        if self.backend.instead is not None and self.backend.instead(self):
            return
        if self.backend.authorization not in ("", given):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="source"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        parts = urlsplit(self.path)
        environment = {
            **ENVIRONMENT,
            "GIT_PROJECT_ROOT": str(self.backend.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(
            ["git", "http-backend"], env=environment, input=body, capture_output=True, check=False
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        with contextlib.suppress(ConnectionError):
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


@contextlib.contextmanager
def backend(root: Path, tls: ssl.SSLContext | None = None) -> Iterator[Backend]:
    """Serves the bare repositories below `root` until the block ends; over TLS at "localhost"."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    port = server.server_address[1]
    found = Backend(root, f"127.0.0.1:{port}")
    if tls is not None:
        # In the thread of each connection, so that one that fails its handshake harms no other.
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        found = Backend(root, f"localhost:{port}", "https")
    handler.backend = found  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def bare_clone(work: Path, target: Path) -> None:
    """Everything of a repository, hidden corners too."""
    git("clone", "--quiet", "--mirror", str(work), str(target))
