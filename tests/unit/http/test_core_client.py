"""What the edge concludes from what its core says, or does not say."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from support.edge import edge_config

from quorepo.internal.v1 import core_pb2, core_pb2_grpc, log_pb2
from quorepo.rpc.auth import Authenticator
from quorepo.rpc.core_client import CoreClient, RepositoryDeleted, Reverify
from quorepo.rpc.node.edge import open_edge
from quorepo.rpc.proposals_config import ProposalsSection
from quorepo.storage.errors import (
    AlreadyExists,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    OutcomeUnknown,
    QuorepoError,
    Unavailable,
)
from quorepo.storage.layout import GroupLayout

Answer = Callable[[core_pb2.ProposeRequest, Any], Awaitable[core_pb2.ProposeResponse]]

COMMAND = log_pb2.Command(version=1, request_id=b"r" * 16)
APPLIED = core_pb2.ProposeResponse(
    outcome=core_pb2.OUTCOME_APPLIED,
    result=log_pb2.Result(path=log_pb2.PathResult(path="a", repository_id="b")),
)
NO_LEADER = core_pb2.ProposeResponse(outcome=core_pb2.OUTCOME_NOT_APPLIED, reason="no-leader")


class ScriptedCore(core_pb2_grpc.CoreServicer):
    """Answers each proposal with the next item of a script; the last one repeats."""

    def __init__(self, *script: core_pb2.ProposeResponse | grpc.StatusCode | str) -> None:
        self.script = list(script)
        self.proposals: list[core_pb2.ProposeRequest] = []
        self.shared: list[int] = []  # commands of each call that carried several

    async def Propose(self, request: core_pb2.ProposeRequest, context: Any) -> Any:
        self.proposals.append(request)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, grpc.StatusCode):
            await context.abort(step, f"aborted with {step.name}")
        if step == "hang":
            await asyncio.Event().wait()
        return step

    async def ProposeMany(self, request: core_pb2.ProposeManyRequest, context: Any) -> Any:
        self.shared.append(len(request.requests))
        answers = []
        for one in request.requests:
            if not one.command.request_id:
                answers.append(core_pb2.ProposeManyAnswer(invalid="no request id"))
            else:
                answer = await self.Propose(one, context)
                answers.append(core_pb2.ProposeManyAnswer(response=answer))
        return core_pb2.ProposeManyResponse(answers=answers)

    async def ReadIndex(self, request: core_pb2.CoreReadIndexRequest, context: Any) -> Any:
        return core_pb2.CoreReadIndexResponse(
            positions=[
                core_pb2.GroupPosition(group=g, generation=1, index=7) for g in request.groups
            ]
        )

    async def ReplicatePack(self, request: core_pb2.ReplicatePackRequest, context: Any) -> Any:
        return core_pb2.ReplicatePackResponse(replicas=["n1", "n2"])

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return core_pb2.CoreStatus(node="n1")

    async def CreateJoinToken(
        self, request: core_pb2.CoreJoinTokenRequest, context: Any
    ) -> core_pb2.CoreJoinTokenResponse:
        raise NotImplementedError

    async def IdentifyNode(self, request: Any, context: Any) -> Any:
        return core_pb2.IdentifyNodeResponse(node=request.node, problem="nobody is there")

    async def TransferLeader(self, request: Any, context: Any) -> Any:
        return core_pb2.CoreTransferResponse(problem="nobody else is there")

    async def Verify(self, request: Any, context: Any) -> Any:
        return core_pb2.CoreVerifyResponse()

    async def GetMetrics(self, request: Any, context: Any) -> Any:
        return core_pb2.CoreMetrics(text=b"metric 1\n")


@pytest.fixture
def socket_path() -> Any:
    with tempfile.TemporaryDirectory(prefix="qr") as folder:  # short: 107 bytes are allowed
        yield Path(folder) / "core.sock"


@contextlib.asynccontextmanager
async def serving(core: ScriptedCore, socket_path: Path) -> AsyncIterator[None]:
    server = grpc.aio.server()
    core_pb2_grpc.add_CoreServicer_to_server(core, server)
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


async def propose(socket_path: Path, *script: Any, timeout_s: float = 0.6) -> tuple[Any, Any]:
    core = ScriptedCore(*script)
    async with serving(core, socket_path):
        client = CoreClient(socket_path)
        try:
            return core, await client.propose(1, COMMAND, timeout_s)
        except QuorepoError as error:
            return core, error
        finally:
            await client.close()


async def test_an_applied_command_gives_its_result(socket_path: Path) -> None:
    _core, result = await propose(socket_path, APPLIED)
    assert result.path.repository_id == "b"


async def test_not_applied_is_certain_and_unavailable(socket_path: Path) -> None:
    core, error = await propose(socket_path, NO_LEADER)
    assert type(error) is Unavailable
    assert "no leader" in str(error)
    assert len(core.proposals) == 1


async def test_an_unknown_outcome_is_asked_again_with_the_same_request(socket_path: Path) -> None:
    unknown = core_pb2.ProposeResponse(outcome=core_pb2.OUTCOME_UNKNOWN, reason="timeout")
    core, result = await propose(socket_path, unknown, APPLIED)
    assert result.path.path == "a"
    assert {p.command.request_id for p in core.proposals} == {COMMAND.request_id}


async def test_after_an_unknown_attempt_nothing_is_certainly_not_applied(
    socket_path: Path,
) -> None:
    unknown = core_pb2.ProposeResponse(outcome=core_pb2.OUTCOME_UNKNOWN, reason="timeout")
    _core, error = await propose(socket_path, unknown, NO_LEADER)
    assert type(error) is OutcomeUnknown
    _core, error = await propose(socket_path, grpc.StatusCode.INTERNAL, NO_LEADER)
    assert type(error) is OutcomeUnknown


async def test_a_core_that_does_not_answer_leaves_the_outcome_unknown(socket_path: Path) -> None:
    _core, error = await propose(socket_path, "hang", timeout_s=0.2)
    assert type(error) is OutcomeUnknown


async def test_a_core_that_is_not_there_certainly_applied_nothing(socket_path: Path) -> None:
    client = CoreClient(socket_path)
    with pytest.raises(Unavailable, match="core is not running"):
        await client.propose(1, COMMAND, 0.3)
    with pytest.raises(Unavailable, match="core is not running"):
        await client.read_index([0, 1], 0.3)
    await client.close()


async def test_a_core_that_comes_back_within_the_deadline_is_asked(socket_path: Path) -> None:
    client = CoreClient(socket_path)
    pending = asyncio.create_task(client.propose(1, COMMAND, 10.0))
    await asyncio.sleep(0.2)
    assert not pending.done()
    async with serving(ScriptedCore(APPLIED), socket_path):
        assert (await pending).path.path == "a"
    await client.close()


async def test_a_core_that_restarts_midway_is_asked_again(socket_path: Path) -> None:
    first, second = ScriptedCore("hang"), ScriptedCore(APPLIED)
    client = CoreClient(socket_path)
    async with serving(first, socket_path):
        pending = asyncio.create_task(client.propose(1, COMMAND, 10.0))
        while not first.proposals:
            await asyncio.sleep(0.01)
    async with serving(second, socket_path):
        assert (await pending).path.path == "a"
    assert second.proposals[0].command.request_id == COMMAND.request_id
    await client.close()


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND, NotFound),
        (log_pb2.REJECTION_REASON_REPOSITORY_EXISTS, AlreadyExists),
        (log_pb2.REJECTION_REASON_REPOSITORY_DELETED, RepositoryDeleted),
        (log_pb2.REJECTION_REASON_INVALID, InvalidArgument),
        (log_pb2.REJECTION_REASON_REVERIFY, Reverify),
        (log_pb2.REJECTION_REASON_REQUEST_EXPIRED, OutcomeUnknown),
    ],
)
async def test_a_rejection_is_the_error_it_stands_for(
    socket_path: Path, reason: Any, error: type[QuorepoError]
) -> None:
    rejected = core_pb2.ProposeResponse(
        outcome=core_pb2.OUTCOME_APPLIED,
        result=log_pb2.Result(rejection=log_pb2.Rejection(reason=reason, message="because")),
    )
    _core, raised = await propose(socket_path, rejected)
    assert type(raised) is error
    assert "because" in str(raised)


async def test_a_command_too_large_for_the_log_is_a_limit(socket_path: Path) -> None:
    too_large = core_pb2.ProposeResponse(outcome=core_pb2.OUTCOME_NOT_APPLIED, reason="too-large")
    _core, error = await propose(socket_path, too_large)
    assert type(error) is LimitExceeded


async def test_the_other_calls_pass_through(socket_path: Path) -> None:
    async with serving(ScriptedCore(APPLIED), socket_path):
        client = CoreClient(socket_path)
        assert (await client.read_index([0, 1], 1.0))[1].index == 7
        assert await client.replicate_pack(1, "r", log_pb2.PackAddition(), 1.0) == ("n1", "n2")
        assert (await client.status()).node == "n1"
        assert await client.metrics() == b"metric 1\n"
        await client.close()


def moving(number: int, *, packs: bool = False) -> log_pb2.Command:
    command = log_pb2.Command(version=1, request_id=b"%016d" % number)
    command.transaction.repository_id = f"r{number}"
    if packs:
        command.transaction.packs_added.add(digest=b"d" * 32)
    return command


async def propose_together(
    socket_path: Path,
    core: ScriptedCore,
    commands: Sequence[log_pb2.Command],
    proposals: ProposalsSection | None = None,
) -> list[Any]:
    """All in the same moment, over a connection that stands."""
    async with serving(core, socket_path):
        client = CoreClient(socket_path, proposals)
        try:
            await client.read_index([1], 5.0)
            return await asyncio.gather(
                *(client.propose(1, command, 5.0) for command in commands), return_exceptions=True
            )
        finally:
            await client.close()


async def test_commands_of_one_moment_share_a_call_and_keep_their_answers(
    socket_path: Path,
) -> None:
    answers = [
        core_pb2.ProposeResponse(
            outcome=core_pb2.OUTCOME_APPLIED,
            result=log_pb2.Result(path=log_pb2.PathResult(path=str(number))),
        )
        for number in range(20)
    ]
    core = ScriptedCore(*answers)
    results = await propose_together(socket_path, core, [moving(n) for n in range(20)])
    assert [result.path.path for result in results] == [str(number) for number in range(20)]
    assert core.shared == [20]


async def test_a_refused_command_fails_alone(socket_path: Path) -> None:
    invalid = moving(1)
    invalid.request_id = b""
    core = ScriptedCore(NO_LEADER, APPLIED)
    results = await propose_together(socket_path, core, [moving(0), invalid, moving(2)])
    assert [type(result) for result in results] == [Unavailable, InvalidArgument, log_pb2.Result]


async def test_a_broken_call_leaves_each_of_its_commands_in_doubt_until_asked_again(
    socket_path: Path,
) -> None:
    core = ScriptedCore(grpc.StatusCode.INTERNAL, NO_LEADER, APPLIED)
    results = await propose_together(socket_path, core, [moving(0), moving(1)])
    # What was in doubt is never "certainly not applied": both are asked again until they have it.
    assert [type(result) for result in results] == [log_pb2.Result, log_pb2.Result]
    asked = {bytes(request.command.request_id) for request in core.proposals}
    assert asked == {moving(0).request_id, moving(1).request_id}


async def test_a_command_that_may_wait_for_packs_holds_up_no_other(socket_path: Path) -> None:
    core = ScriptedCore(APPLIED)
    commands = [moving(0, packs=True), moving(1, packs=True)]
    results = await propose_together(socket_path, core, commands)
    assert [type(result) for result in results] == [log_pb2.Result, log_pb2.Result]
    assert core.shared == []


SIZE = core_pb2.ProposeRequest(group=1, command=moving(0), timeout_ms=4999).ByteSize()


@pytest.mark.parametrize(
    ("limits", "shared", "alone"),
    [
        ({}, [10], 0),
        ({"call_commands_max": 4}, [4, 4, 2], 0),
        ({"call_commands_max": 3}, [3, 3, 3], 1),
        ({"call_commands_max": 1}, [], 10),
        ({"call_bytes_max": 5 * SIZE + SIZE // 2}, [5, 5], 0),
        ({"call_bytes_max": 1}, [], 10),
        ({"shared_command_bytes_max": SIZE}, [10], 0),
        ({"shared_command_bytes_max": SIZE - 10}, [], 10),
    ],
)
async def test_no_call_carries_more_than_the_configuration_says(
    socket_path: Path, limits: dict[str, int], shared: list[int], alone: int
) -> None:
    """Everybody has an answer; how many calls were needed for it is what [proposals] changes."""
    config = edge_config(socket_path.parent / "data", proposals=limits)
    core = ScriptedCore(APPLIED)
    commands = [moving(number) for number in range(10)]
    results = await propose_together(socket_path, core, commands, config.proposals)
    assert [type(result) for result in results] == [log_pb2.Result] * 10
    assert sorted(core.shared, reverse=True) == shared
    assert len(core.proposals) - sum(core.shared) == alone


async def test_an_edge_batches_as_its_configuration_says(socket_path: Path, tmp_path: Path) -> None:
    config = edge_config(tmp_path / "data", proposals={"call_commands_max": 2})
    for group in (0, 1):
        GroupLayout(config.node.data_dir, group).create()
    core = ScriptedCore(APPLIED)
    async with (
        serving(core, socket_path),
        open_edge(config, socket_path, Authenticator({})) as edge,
    ):
        await edge.core.read_index([1], 60.0)
        await asyncio.gather(*(edge.core.propose(1, moving(n), 60.0) for n in range(4)))
    assert core.shared == [2, 2]
