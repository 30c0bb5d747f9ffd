"""kill -9 of the node that a client talks to, in the middle of its writes."""

from __future__ import annotations

import threading

import pytest
from support.demo import Demo
from support.waiting import eventually

import quorepo
from quorepo.types import FileAction, Signature

pytestmark = pytest.mark.system

ADA = Signature("Ada", "ada@example.org")


def test_writes_go_on_while_nodes_are_killed_and_each_is_done_once(own_cluster: Demo) -> None:
    demo = own_cluster
    addresses = [node.grpc for node in demo.nodes.values()]
    done: list[str] = []
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(client: quorepo.Client) -> None:
        number = 0
        try:
            while not stop.is_set():
                name = f"f{number}"
                client.operations.commit_files(
                    "kill/app",
                    "main",
                    # refused when it is done a second time
                    [FileAction("create", name, name.encode())],
                    message=name,
                    author=ADA,
                )
                done.append(name)
                number += 1
        except BaseException as error:
            failures.append(error)

    def progress(count: int) -> None:
        goal = len(done) + count
        eventually(lambda: bool(failures) or len(done) >= goal, timeout_s=90, what="writes go on")
        assert failures == []

    with quorepo.Client(addresses, token=demo.token, timeout_s=60) as client:
        client.repositories.create("kill/app", default_branch="main")
        writer = threading.Thread(target=write, args=[client])
        writer.start()
        try:
            progress(5)
            leader = demo.leader(1)
            demo.kill(leader)
            progress(5)
            demo.restart(leader)
            eventually(
                lambda: demo.cli("status", node=leader, check=False).returncode == 0,
                timeout_s=60,
                what=f"{leader} is back",
            )
            progress(5)
        finally:
            stop.set()
            writer.join(timeout=90)
        assert failures == []
        messages = [
            commit.message.decode().strip() for commit in client.commits.list("kill/app", "main")
        ]
        # Each acknowledged write once, in order, and nothing else.
        assert messages[::-1] == done
        for name in done:
            assert client.blobs.file("kill/app", name).data == name.encode()
