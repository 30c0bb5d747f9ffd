"""A push whose outcome is not known says so, and repeating it is harmless."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from support.demo import Demo
from support.git import WorkTree, git, refs_of
from support.waiting import eventually

pytestmark = pytest.mark.system

STORAGE = 1
ZERO = "0" * 40


def test_push_that_reached_only_the_leaders_log_is_reported_as_unknown(
    own_cluster: Demo, work: WorkTree
) -> None:
    """The leader appends the entry, and both followers are gone before they can take it.

    The followers are paused after the push's read index and before the end of its commands, so the
    request is in its log and nobody can say whether it will stay there.
    """
    demo = own_cluster
    oid = work.commit("first")
    path = "unknown/repo"
    answer = ""
    for attempt in range(5):
        topic = f"refs/heads/topic{attempt}"
        leader = demo.leader(STORAGE)
        work.git("push", "--quiet", demo.url(leader, path), "main", f"HEAD:{topic}")
        followers = [name for name in demo.nodes if name != leader]
        with SlowPush(demo, leader, path, f"{oid} {ZERO} {topic}") as push:
            # An attempt that is paused before its read index ends as "no leader": then once more.
            push.wait_until_read(0.2 * (attempt + 1))
            with paused(demo, followers):
                answer = push.finish()
        if "no leader" not in answer:
            break
        eventually(lambda: git("ls-remote", demo.url("n1", path), check=False).returncode == 0)
    assert "unpack ok" in answer
    assert f"ok {topic}" not in answer.replace("unpack ok", "")
    assert f"ng {topic}" not in answer
    assert "not known" in answer, "side-band 2 explains it"

    # The same request again: whatever became of the first one, the ref is gone afterwards.
    def repeated() -> bool:
        url = demo.url("n2", path)
        work.git("push", url, "--delete", topic, check=False)
        process = git("ls-remote", url, check=False)
        return process.returncode == 0 and topic not in process.stdout

    eventually(repeated, timeout_s=40, what="the repeated push settles it")
    shown = [refs_of(demo.url(name, path)) for name in demo.nodes]
    assert shown[0] == shown[1] == shown[2]
    assert shown[0]["refs/heads/main"] == oid


@contextlib.contextmanager
def paused(demo: Demo, names: list[str]) -> Iterator[None]:
    """Stops all processes of these nodes for the time of the block, as a frozen machine would."""
    groups = [os.getpgid(demo.nodes[name].pid) for name in names]
    for group in groups:
        os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        for group in groups:
            os.killpg(group, signal.SIGCONT)


class SlowPush:
    """A push by hand: the request is held back in the middle of its only command."""

    def __init__(self, demo: Demo, node: str, path: str, command: str) -> None:
        parts = urlsplit(demo.nodes[node].http)
        assert parts.port is not None
        credential = base64.b64encode(f"admin:{demo.token}".encode()).decode()
        payload = f"{command}\0report-status side-band-64k".encode()
        body = b"%04x" % (len(payload) + 4) + payload + b"0000"
        head = (
            f"POST /{path}/git-receive-pack HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Basic {credential}\r\n"
            "Content-Type: application/x-git-receive-pack-request\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode()
        self._rest = body[20:]
        self._socket = socket.create_connection(("127.0.0.1", parts.port), timeout=60)
        self._socket.sendall(head + body[:20])

    def __enter__(self) -> SlowPush:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait_until_read(self, seconds: float) -> None:
        """The server does not answer while the request is open: nothing else shows its progress."""
        self._socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            self._socket.recv(1)
        self._socket.settimeout(60)

    def finish(self) -> str:
        """Sends the rest; returns the whole answer, framing included."""
        started = time.monotonic()
        self._socket.sendall(self._rest)
        answer = b"".join(iter(lambda: self._socket.recv(65536), b""))
        assert time.monotonic() - started < 30, "an answer in bounded time"
        return answer.decode(errors="replace")
