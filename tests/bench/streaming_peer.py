"""`git http-backend` behind an HTTP server of its own process that streams, for fair comparisons.

    python -m tests.bench.streaming_peer ROOT     prints its port

Its own CPU is not counted, only that of the git processes it has waited for.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, cast


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = ""

    def do_GET(self) -> None:
        self._run()

    def do_POST(self) -> None:
        self._run()

    def _run(self) -> None:
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length", "0"))
        environment = {
            "PATH": "/usr/bin:/bin:/usr/local/bin",
            "GIT_PROJECT_ROOT": self.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(length),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        process = subprocess.Popen(
            ["git", "http-backend"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        while length and (piece := self.rfile.read(min(length, 1 << 18))):
            process.stdin.write(piece)
            length -= len(piece)
        process.stdin.close()
        self._relay(cast(BinaryIO, process.stdout))
        process.wait()
        self.close_connection = True

    def _relay(self, answer: BinaryIO) -> None:
        status, headers = 200, []
        while line := answer.readline().strip():
            key, _, value = line.decode().partition(": ")
            if key == "Status":
                status = int(value.split()[0])
            else:
                headers.append((key, value))
        self.send_response(status)
        for key, value in [*headers, ("Connection", "close")]:
            self.send_header(key, value)
        self.end_headers()
        shutil.copyfileobj(answer, self.wfile, 256 * 1024)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 256


class StreamingPeer:
    """The server in a subprocess; use as a context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> StreamingPeer:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.streaming_peer", str(self._root)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.pid = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def url(self, name: str) -> str:
        """Of a repository below the root."""
        return f"http://127.0.0.1:{self.port}/{name}"


def main() -> None:
    """Serves until it is ended."""
    _Handler.root = str(Path(sys.argv[1]).resolve())
    server = _Server(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
