"""Files that nobody needs go while a cluster is pushed to, and nothing that is needed does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, clone, git, refs_of
from support.pusher import Pusher
from support.replicas import check_replicas, quarantined_of, retired_of
from support.waiting import eventually

pytestmark = pytest.mark.system

STORAGE = 1
EAGER = [
    "raft.compaction_entries_min=8",
    "raft.trailing_entries=2",
    "storage.sweep=true",
    "storage.sweep_interval_s=0.3",
    "storage.quarantine_retention_s=3.0",
    "storage.retired_retention_s=1.0",
    "storage.undelete_retention_s=1.0",
    "storage.consolidation_interval_s=1.0",
    "storage.packs_max=5",
]


@pytest.fixture
def eager(tmp_path: Path) -> Iterator[Demo]:
    options = [word for setting in EAGER for word in ("--set", setting)]
    with Demo(tmp_path / "demo", *options) as demo:
        yield demo


def files_left(demo: Demo) -> dict[str, set[str]]:
    return {
        node.name: quarantined_of(node)
        | retired_of(node)
        | {p.name for p in (node.data_dir / "groups" / str(STORAGE) / "retired").glob("*.git")}
        for node in demo.nodes.values()
    }


def test_what_nobody_needs_goes_while_nodes_die_and_everything_else_stays(
    eager: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo = eager
    work.commit("first")
    work.git("push", "--quiet", demo.url("n1", "swept/kept"), "main")
    work.git("push", "--quiet", demo.url("n1", "swept/deleted"), "main")
    leader = demo.leader(STORAGE)
    victim = next(name for name in demo.nodes if name != leader)
    pusher = Pusher(demo, work, "swept/kept", list(demo.nodes))
    pusher.start()
    pusher.wait_for(6)
    demo.cli("repo", "delete", "swept/deleted", "--yes", node=leader)
    pusher.wait_for(6)
    demo.kill(victim)
    pusher.wait_for(12)
    demo.restart(victim)
    eventually(
        lambda: git("ls-remote", demo.url(victim, "swept/kept"), check=False).returncode == 0,
        timeout_s=40, what=f"{victim} serves again",
    )  # fmt: skip
    pusher.wait_for(12)
    pusher.finish()
    for node in demo.nodes:
        pusher.check(refs_of(demo.url(node, "swept/kept")))
        clone(demo.url(node, "swept/kept"), tmp_path / f"clone-{node}", "--mirror")
    # A staged pack may be swept before its entry comes, with a retention that is this short.
    eventually(
        lambda: demo.cli("repo", "optimize", "swept/kept", check=False).returncode == 0,
        timeout_s=60, what="the packs are merged",
    )  # fmt: skip

    # Log time and the logs' cuts go on with writes; then everything that was replaced is gone, and
    # only what these writes leave is there.
    replaced = files_left(demo)
    assert all(replaced.values())

    def swept() -> bool:
        work.commit("time goes on")
        work.git("push", "--quiet", demo.url(leader, "swept/other"), "main")
        left = files_left(demo)
        return not any(left[name] & replaced[name] for name in replaced)

    eventually(swept, timeout_s=60, what="nothing is left that nobody needs")
    check_replicas(demo, "swept/kept", leader)
    # The victim may have swept before it was killed, and has counted anew since.
    for node in demo.nodes.keys() - {victim}:
        text = demo.metrics(node)
        for kind in ("retired pack", "retired repository"):
            assert f'quorepo_swept_files_total{{kind="{kind}"}}' in text, f"{node}: {kind}"
