"""A dead node whose disk is empty comes back by `quorepo node replace`: what an operator sees.

    PYTHONPATH=tests python -m chaos.replace_dead

Exit status 1 when a step ended otherwise, or the new replica lacks an acknowledged push.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.demo import Demo
from support.git import WorkTree, git
from support.membership import wipe
from support.waiting import eventually

from chaos.transcript import Transcript

PATH = "team/app"
_STEP_TIMEOUT_S = 120


def main() -> int:
    with tempfile.TemporaryDirectory() as name, Demo(Path(name) / "demo") as demo:
        transcript = Transcript(demo)
        work = WorkTree(Path(name) / "work")
        oid = work.commit("first")
        work.git("push", "-q", demo.url("n1", PATH), "HEAD:refs/heads/main")
        demo.kill("n3")
        wipe(demo, "n3")
        transcript.note("n3 was killed, and its disk is empty")
        transcript.run("node", "replace", "n3", "--yes", node="n1", code=5)
        demo.restart("n3", QUOREPO_CLUSTER__REJOIN_EMPTY="false")
        transcript.note("n3 is started, on the empty disk")
        eventually(lambda: waits(demo), timeout_s=_STEP_TIMEOUT_S, what="n3 waits")
        transcript.run("cluster", "health", node="n3", code=3)
        transcript.run("node", "replace", "n3", "--dry-run", node="n1")
        transcript.run("node", "replace", "n3", "--yes", node="n1")
        transcript.run("node", "list", node="n1")
        eventually(
            lambda: oid in git("ls-remote", demo.url("n3", PATH), check=False).stdout,
            timeout_s=_STEP_TIMEOUT_S, what="n3 serves what was pushed",
        )  # fmt: skip
    return 0


def waits(demo: Demo) -> bool:
    """Says n3 of itself that it waits?"""
    asked = demo.cli("status", "-o", "json", node="n3", check=False)
    nodes = json.loads(asked.stdout)["nodes"] if asked.returncode == 0 else []
    return any(node["phase"] == "waiting to be replaced" for node in nodes)


if __name__ == "__main__":
    sys.exit(main())
