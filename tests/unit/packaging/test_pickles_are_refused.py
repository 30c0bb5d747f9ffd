"""Whatever a node reads from the network or from its disk is given a pickle that would run code.

pysyncobj unpickles all of these as it comes (defects X1 and X2). Each parser must refuse with a
typed error, and nothing of the pickle may run.
"""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.message import DecodeError
from support.peer_certificates import credentials_of, now
from support.peer_nodes import KEEPALIVE, METHODS, SERVICE, Lab, Node

from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.peer.certificates import load_credentials
from quorepo.cluster.peer.clients import open_channel
from quorepo.cluster.raft.entries import COMMAND, NO_OP, check_entry, decode_entry
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.raft.votes import VoteFile
from quorepo.cluster.raft.wire import WireError, decode_message
from quorepo.cluster.state.commands import decode_command
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import ConfigError, FatalError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Hostile:
    """Creates a file when it is unpickled, by whatever unpickler."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-of-the-sender-ran"


@pytest.fixture(params=PROTOCOLS)
def hostile(request: pytest.FixtureRequest, mark: Path, tmp_path: Path) -> Iterator[bytes]:
    data = pickle.dumps(Hostile(mark), protocol=request.param)
    pickle.loads(data)
    assert mark.exists(), "the pickle works"
    mark.unlink()
    yield data
    assert not mark.exists()


def test_vote_file(hostile: bytes, tmp_path: Path) -> None:
    path = tmp_path / "group-1.vote"
    path.write_bytes(hostile)
    with pytest.raises(FatalError, match="is damaged"):
        VoteFile(path)


def journal_with_two_entries(directory: Path) -> Path:
    """Returns its one segment."""
    journal = Journal.open(directory)
    journal.append(1, 1, 0, b"\x01")
    journal.append(1, 2, 1, b"\x01" + bytes(8))
    journal.sync()
    journal.close()
    (segment,) = directory.glob("*.segment")
    return segment


def test_journal_segment(hostile: bytes, tmp_path: Path) -> None:
    journal_with_two_entries(tmp_path / "journal").write_bytes(hostile)
    with pytest.raises(FatalError, match=r"\.segment"):
        Journal.open(tmp_path / "journal")


def test_journal_records(hostile: bytes, tmp_path: Path) -> None:
    segment = journal_with_two_entries(tmp_path / "journal")
    segment.write_bytes(segment.read_bytes() + hostile)
    with pytest.raises(FatalError, match="is damaged at byte"):
        Journal.open(tmp_path / "journal")


def test_node_json(hostile: bytes, tmp_path: Path) -> None:
    (tmp_path / "node.json").write_bytes(hostile)
    with pytest.raises(FatalError, match=r"node\.json is damaged"):
        NodeIdentity.open(tmp_path, "n1")


def test_configuration_in_node_json(hostile: bytes, tmp_path: Path) -> None:
    NodeIdentity.open(tmp_path, "n1")
    content = json.loads((tmp_path / "node.json").read_text())
    content["founding"] = base64.b64encode(hostile).decode()
    (tmp_path / "node.json").write_text(json.dumps(content))
    # Protobuf takes some pickles for fields that it does not know, and ignores them.
    if parses(log_pb2.Configuration, hostile):
        assert not NodeIdentity.open(tmp_path, "n1").formed
        return
    with pytest.raises(FatalError, match=r"node\.json is damaged"):
        NodeIdentity.open(tmp_path, "n1")


def parses(message: Any, data: bytes) -> bool:
    try:
        parsed = message.FromString(data)
    except DecodeError:
        return False
    assert not parsed.ListFields(), "a pickle has no field of ours"
    return True


def test_log_command(hostile: bytes) -> None:
    with pytest.raises(FatalError, match="log entry"):
        decode_command(hostile)


@pytest.mark.parametrize("kind", [*range(4), None])
def test_log_entry(hostile: bytes, kind: int | None) -> None:
    """Kinds 0 to 3 are pysyncobj's, which unpickles what follows each."""
    entry = hostile if kind is None else bytes([kind]) + bytes(8) + hostile
    if kind in (COMMAND, NO_OP):
        check_entry(2, entry)  # a command is the gate's to refuse, a no-op means nothing
        assert decode_entry(1, 2, 1, entry).data == hostile
    else:
        with pytest.raises(ValueError, match=r"log entry 2|configuration entry"):
            check_entry(2, entry)


def test_messages_of_raft(hostile: bytes) -> None:
    if parses(peer_pb2.GroupMessage, hostile):
        with pytest.raises(WireError, match="no known kind"):
            decode_message(peer_pb2.GroupMessage.FromString(hostile))
    sent = peer_pb2.GroupMessage(group=1, term=3)
    sent.append_entries.prev_log_index = 1
    sent.append_entries.entries.add(index=2, term=3, data=hostile)
    with pytest.raises(WireError, match="log entry 2"):
        decode_message(sent)


def test_certificate_files(hostile: bytes, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("ca.pem", "n1.pem", "n1.key")]
    for path in paths:
        path.write_bytes(hostile)
        path.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no certificate"):
        load_credentials("n1", paths[0], paths[1], paths[2], now())


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    lab = Lab(tmp_path)
    yield await lab.node("n1")
    await lab.close()


# What protobuf takes for unknown fields only is an empty question to these, and harmless.
EMPTY_IS_FINE = {"Identify", "GetStatus"}


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_of_the_peer_port(hostile: bytes, node: Node, method: str) -> None:
    codes = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAVAILABLE"}
    async with open_channel(node.peer, credentials_of("n2"), KEEPALIVE) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE.full_name}/{method}")()
        await call.write(hostile)
        await call.done_writing()
        code = (await call.code()).name
    assert code in (codes | {"OK"} if method in EMPTY_IS_FINE else codes)
    assert node.inbox.received == []
