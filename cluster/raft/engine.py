"""pysyncobj as the engine: the only module that knows its private names.

Owns: the construction of a SyncObj without sockets, files, threads or pickles, plain names for
its state, and one override per unsafe method, each with the defect (raft-engine.md) or the
section of the Raft paper that it answers. What the overrides do is in the modules that inherit
from `Engine`. What stays pysyncobj's own, run as it is: the driving loop (`_onTick`), the start
of an election, the commit rule, the step-down of a leader without a majority, the command queue,
the tables of next and match indexes, terms and states.

pysyncobj is shown decisions, never times: before each tick its deadlines are set to "passed" or
"never" from our clock (`present_decisions`). So its own clock and random numbers are not used,
and a simulator needs to replace nothing in it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, NoReturn

from quorepo.cluster.raft.interface import ApplySink, DiskSpace, PackGate, RaftConfig
from quorepo.cluster.raft.pin import SyncObj, SyncObjConf
from quorepo.cluster.raft.replica_log import ReplicaLog
from quorepo.cluster.raft.stand_ins import EngineTransport, Node, NothingToPoll
from quorepo.cluster.raft.wire import Message
from quorepo.storage.errors import FatalError

__all__ = ["CANDIDATE", "FOLLOWER", "LEADER", "Engine", "Node"]

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2  # pysyncobj's _RAFT_STATE

_NEVER = math.inf
_PASSED = -math.inf


class Engine(SyncObj):  # type: ignore[misc]
    """One group's replica; see the module. Only the Raft thread calls it.

    No property here may read anything that is set after `super().__init__`: pysyncobj looks at
    all of them.
    """

    def __init__(
        self,
        *,
        group: int,
        replica_id: str,
        log: ReplicaLog,
        applied_index: int,
        config: RaftConfig,
        sink: ApplySink,
        gate: PackGate,
        space: DiskSpace,
        carry: Callable[[str, int, Message], bool],
        clock_ms: Callable[[], int],
        rng: random.Random,
        monotonic: Callable[[], float],
    ) -> None:
        self.group = group
        self.me = Node(replica_id)
        self.log = log
        self.config = config
        self.sink = sink
        self.gate = gate
        self.space = space
        self.clock_ms = clock_ms
        self.rng = rng
        self.now = monotonic()
        self.heartbeat_at = _PASSED  # leader: when the followers are due to hear from it
        self.heard_at: dict[Node, float] = {}  # leader: when each voter last confirmed it
        self.connections_changed = 0  # how often
        self.may_be_elected = False  # this tick: pre-vote won, or asked to by the leader
        self._carry = carry
        self.transport = EngineTransport(self._send_dict)
        super().__init__(
            self.me, [], self._syncobj_conf(config), nodeClass=Node, transport=self.transport
        )
        self._poller = NothingToPoll()
        self._begin_from_log(applied_index)

    def _syncobj_conf(self, config: RaftConfig) -> SyncObjConf:
        return SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            journalFile=None,
            fullDumpFile=None,
            useFork=False,
            password=None,
            dynamicMembershipChange=True,
            commandsWaitLeader=False,
            commandsQueueSize=config.proposal_queue_max,
            raftMinTimeout=config.election_timeout_s_min,
            raftMaxTimeout=config.election_timeout_s_max,
            appendEntriesPeriod=config.heartbeat_interval_s,
            leaderFallbackTimeout=config.leader_fallback_timeout_s,
            connectionTimeout=max(3.0, config.election_timeout_s_max),
            onStateChanged=lambda old, new: self.state_changed(old, new),
        )

    def _begin_from_log(self, applied_index: int) -> None:
        """Puts our log in the place of the empty one in memory that SyncObj was constructed with.

        Nothing has looked at that one: autoTick is off, and there is no peer yet. So everything
        that SyncObj.__init__ restores from a journal is restored here.
        """
        group_log = self.log.for_pysyncobj
        if applied_index > self.log.last_index:
            raise FatalError(
                f"group {self.group}: the state holds entry {applied_index}, but the journal ends "
                f"at {self.log.last_index}; the journal lost what it had synced: give this node an "
                "empty disk and let it rejoin",
                exit_code=FatalError.EXIT_IO_ERROR,
            )
        self._SyncObj__raftLog = group_log
        # Never raised to the last entry's term, as pysyncobj does: GroupLog refuses a vote file
        # that is older than the log, because this replica may have voted in the terms that the
        # file lost.
        self._SyncObj__raftCurrentTerm = group_log.getCurrentTerm()
        self._SyncObj__votedForNodeId = group_log.getVotedForNodeId()
        # What is applied is committed, and index 1 is the same in every log (entries.FIRST_ENTRY).
        self._SyncObj__raftCommitIndex = max(1, applied_index)
        self._SyncObj__raftLastApplied = applied_index

    # ---- plain names for what pysyncobj keeps

    @property
    def current_term(self) -> int:
        return self._SyncObj__raftCurrentTerm

    @property
    def voted_for(self) -> str | None:
        return self._SyncObj__votedForNodeId

    def set_term(self, term: int, vote: str | None) -> None:
        """Durable on return: pysyncobj's method hands it to our vote file (defect D1)."""
        self._SyncObj__setCurrentTerm(term, vote)

    @property
    def state(self) -> int:
        return self._SyncObj__raftState  # type: ignore[no-any-return]

    def set_state(self, state: int) -> None:
        self._SyncObj__setState(state)

    @property
    def is_leader(self) -> bool:
        return self._SyncObj__raftState == LEADER  # type: ignore[no-any-return]

    @property
    def is_candidate(self) -> bool:
        return self._SyncObj__raftState == CANDIDATE  # type: ignore[no-any-return]

    @property
    def leader(self) -> Node | None:
        return self._SyncObj__raftLeader

    @leader.setter
    def leader(self, node: Node | None) -> None:
        self._SyncObj__raftLeader = node

    @property
    def commit_index(self) -> int:
        return self._SyncObj__raftCommitIndex

    def set_commit_index(self, index: int) -> None:
        self._SyncObj__raftCommitIndex = index

    @property
    def handed_over(self) -> int:
        """Last entry given to the apply sink: what pysyncobj calls applied."""
        return self._SyncObj__raftLastApplied

    def set_handed_over(self, index: int) -> None:
        self._SyncObj__raftLastApplied = index

    @property
    def other_voters(self) -> set[Node]:
        """The replicas that are counted, without this one."""
        return self._SyncObj__otherNodes

    @property
    def other_learners(self) -> set[Node]:
        """Replicas that follow the log and are not counted: pysyncobj's place for read-only
        nodes."""
        return self._SyncObj__readonlyNodes

    def set_peers(self, voters: set[Node], learners: set[Node]) -> None:
        self._SyncObj__otherNodes = voters
        self._SyncObj__readonlyNodes = learners

    @property
    def connected(self) -> set[Node]:
        return self._SyncObj__connectedNodes  # type: ignore[no-any-return]

    @property
    def next_index(self) -> dict[Node, int]:
        return self._SyncObj__raftNextIndex  # type: ignore[no-any-return]

    @property
    def match_index(self) -> dict[Node, int]:
        return self._SyncObj__raftMatchIndex  # type: ignore[no-any-return]

    @property
    def no_op_index(self) -> int | None:
        """Leader: where its term begins in the log; until that is committed it knows too little
        to answer."""
        return self._SyncObj__noopIDx

    def set_no_op_index(self, index: int) -> None:
        self._SyncObj__noopIDx = index

    def is_majority(self, nodes: set[Node]) -> bool:
        """Whether these voters, this replica among them, are more than half of all voters."""
        return 2 * len(nodes & (self.other_voters | {self.me})) > len(self.other_voters) + 1

    def has_commands(self) -> bool:
        """Whether `next_command` has one now."""
        return bool(self._SyncObj__commandsQueue._FastQueue__queue)

    def next_command(self) -> tuple[bytes, Any]:
        """Takes a command and its callback out of pysyncobj's queue. Raises queue.Empty."""
        return self._SyncObj__commandsQueue.get_nowait()  # type: ignore[no-any-return]

    def refuse_command(self, callback: Any, reason: int) -> None:
        """Tells the proposer, here or on another node, that its command was certainly not
        appended."""
        self._SyncObj__callErrCallback(reason, callback)

    # ---- sending

    def send(self, node: Node, type_: str, **message: Any) -> bool:
        """Sends a message of the current term; False when the replica is not connected."""
        return self._send_dict(node, {"type": type_, **message})

    def _send_dict(self, node: Node, message: Message) -> bool:
        if node not in self.connected:
            return False
        # Defect S6: some of pysyncobj's messages carry no term.
        message.setdefault("term", self.current_term)
        return self._carry(node.id, self.group, message)

    # ---- the clock

    def election_timeout_s(self) -> float:
        low, high = self.config.election_timeout_s_min, self.config.election_timeout_s_max
        return self.rng.uniform(low, high)

    def present_decisions(self) -> None:
        """Shows pysyncobj's next tick what is due, in place of times: see the module."""
        self._SyncObj__raftElectionDeadline = _PASSED if self.may_be_elected else _NEVER
        if not self.is_leader:
            return  # the rest is looked at by a leader only
        due = self.now >= self.heartbeat_at
        self._SyncObj__newAppendEntriesTime = _PASSED if due else _NEVER
        heard_since = self.now - self.config.leader_fallback_timeout_s
        self._SyncObj__lastResponseTime = {
            node: _NEVER if self.heard_at.get(node, _PASSED) > heard_since else _PASSED
            for node in self.other_voters
        }

    # ---- what the inheriting modules do, for pysyncobj and for each other

    def note_contact(self, node: Node) -> None:
        raise NotImplementedError

    def adopt_configuration(self) -> None:
        raise NotImplementedError

    def why_denied(self, payload: bytes) -> str:
        raise NotImplementedError

    def append_configuration(self, index: int, payload: bytes) -> None:
        raise NotImplementedError

    def track_follower(self, node: Node) -> None:
        raise NotImplementedError

    def forget_follower(self, node: Node) -> None:
        raise NotImplementedError

    def state_changed(self, old: int, new: int) -> None:
        raise NotImplementedError

    def become_leader(self) -> None:
        raise NotImplementedError

    def offer_snapshot(self, node: Node) -> None:
        raise NotImplementedError

    def follow(self, node: Node, term: int) -> None:
        raise NotImplementedError

    def acknowledge_to(self, node: Node, index: int) -> None:
        raise NotImplementedError

    def note_installed(self, index: int, term: int) -> None:
        raise NotImplementedError

    def release_reads(self) -> None:
        raise NotImplementedError

    def send_heartbeats(self) -> None:
        raise NotImplementedError

    def handle_message(self, node: Node, message: Message) -> None:
        raise NotImplementedError

    def hand_over(self) -> None:
        raise NotImplementedError

    def take_commands(self) -> None:
        raise NotImplementedError

    def step_down(self, term: int, vote: str | None = None) -> None:
        raise NotImplementedError

    def peer_connected(self, node: Node) -> None:
        raise NotImplementedError

    def peer_disconnected(self, node: Node) -> None:
        raise NotImplementedError

    # ---- overrides of pysyncobj's private methods

    def _SyncObj__onMessageReceived(self, node: Node, message: Message) -> None:
        """S1, S2, S6, D5, X2: rewinds matching logs, commits what is unverified, counts replies
        of other terms, unpickles. Ours: appending.py, elections.py, replication.py (Raft 5.2 to
        5.4)."""
        self.handle_message(node, message)

    def _SyncObj__onBecomeLeader(self) -> None:
        """Its no-op carries no time, and its tables would count replies of an earlier term of
        office."""
        self.become_leader()

    def _SyncObj__sendAppendEntries(self) -> None:
        """S4, X2: one next index for probing and pipelining, unbounded in flight, pickled
        chunks."""
        self.send_heartbeats()

    def _SyncObj__getEntries(
        self, start: int, count: int | None = None, maxSizeBytes: int | None = None
    ) -> list[tuple[bytes, int, int]]:
        """What the commit rule sees of the log (nothing else calls this any more): only what our
        journal has synced, because the rule counts the leader itself without asking (D1;
        dissertation, 10.2.1). It skips an index that it gets no entry for, so nothing above the
        synced end is committed."""
        assert count == 1, "only the commit rule reads entries through pysyncobj"
        if start > self.log.durable_index:
            return []
        return [(b"", start, self.log.term_at(start))]

    def _SyncObj__getCurrentLogIndex(self) -> int:
        """The same answer without reading the entry."""
        return self.log.last_index

    def _SyncObj__getCurrentLogTerm(self) -> int:
        """The same answer without reading the entry."""
        return self.log.last_term

    def _SyncObj__applyLogEntries(self) -> bool:
        """S5: an exception applies an entry twice or for ever. Ours hands over, see commands.py."""
        self.hand_over()
        return False

    def _checkCommandsToApply(self) -> None:
        """S3, S6, X2: guesses at configuration changes, reuses request ids, unpickles. Ours:
        commands.py."""
        self.take_commands()

    def _SyncObj__onLeaderChanged(self) -> None:
        """Its table of forwarded commands is not used; the group notices the change in its tick."""

    def _SyncObj__onNodeConnected(self, node: Node) -> None:
        self.connected.add(node)
        self.connections_changed += 1
        self.peer_connected(node)

    def _SyncObj__onNodeDisconnected(self, node: Node) -> None:
        self.connected.discard(node)
        self.connections_changed += 1
        self.peer_disconnected(node)

    def _SyncObj__connectedToAnyone(self) -> bool:
        """An election starts only after a majority answered the pre-vote: that is connection
        enough."""
        return True

    def _SyncObj__generateRaftTimeout(self) -> float:
        """Not its module-wide random numbers: ours are passed in."""
        return self.election_timeout_s()

    def _SyncObj__tryLogCompaction(self) -> None:
        """D2, D3: it cuts the journal by a pickled dump. Ours is cut by the host, from SQLite's
        index."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Paths that nothing may take: they unpickle (X1, X2) or change the configuration
        unsafely (S3)."""
        raise FatalError("a part of pysyncobj that quorepo never uses was called")

    _SyncObj__parseChangeClusterRequest = _refuse
    _SyncObj__changeCluster = _refuse
    _SyncObj__doChangeCluster = _refuse
    _SyncObj__updateClusterConfiguration = _refuse
    _SyncObj__doApplyCommand = _refuse
    _SyncObj__loadDumpFile = _refuse
    _SyncObj__onReadonlyNodeConnected = _refuse
    _SyncObj__onReadonlyNodeDisconnected = _refuse
    _SyncObj__sendNextNodeIdx = _refuse
    _SyncObj__deleteEntriesFrom = _refuse
    _SyncObj__deleteEntriesTo = _refuse
    _addNodeToCluster = _refuse
    _removeNodeFromCluster = _refuse
    _setCodeVersion = _refuse
    addNodeToCluster = _refuse
    removeNodeFromCluster = _refuse
    setCodeVersion = _refuse
