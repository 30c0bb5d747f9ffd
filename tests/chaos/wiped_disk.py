"""A wiped disk comes back, thousands of pushes past the last compaction and while pushes go on.

    PYTHONPATH=tests python -m chaos.wiped_disk [--pushes 5000] [--compaction 3000]

Pushes (one object, one new ref each; eight clients) until the logs were cut once; then n3 is killed
and its disk emptied, `--pushes` more are acknowledged by the two others, and n3 starts on the empty
disk while pushes go on. It has to come by itself, under a new replica id, get the state by a
snapshot, all packs by digest and the rest by the log, and vote again. At the end it must serve
every acknowledged ref and a clone that fsck finds whole. Exit status 1 when something is missing.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import itertools
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.demo import Demo
from support.git import WorkTree, clone, git, refs_of
from support.membership import configurations, members
from support.raw_http import PUSH_TYPE, ZERO, blob_entry, blob_id, commands, pack, packets
from support.waiting import eventually

PATH = "chaos/wiped"
CLIENTS = 8
_COMPACTIONS = "quorepo_raft_compactions_total"
_TIMEOUT_S = 900


class Clients:
    """Pushes of small new objects, by several connections at once; knows what was acknowledged."""

    def __init__(self, demo: Demo, names: list[str]) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.acknowledged: dict[str, str] = {}
        self.failed = 0
        self._threads = [
            threading.Thread(target=self._run, args=(demo, names[n % len(names)]), daemon=True)
            for n in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, demo: Demo, name: str) -> None:
        address = urlsplit(demo.nodes[name].http)
        user = base64.b64encode(f"admin:{demo.token}".encode()).decode()
        headers = {"Authorization": f"Basic {user}", "Content-Type": PUSH_TYPE}
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        while not self._stop.is_set():
            with self._lock:
                number = next(self._numbers)
            content = b"object %d\n" % number
            ref, oid = f"refs/tags/t{number}", blob_id(content)
            body = commands(f"{ZERO} {oid} {ref}") + pack(blob_entry(content))
            try:
                connection.request("POST", f"/{PATH}/git-receive-pack", body, headers)
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self.failed += 1
                continue
            if response.status == 200 and _accepted(answer, ref):
                self.acknowledged[ref] = oid
            else:
                self.failed += 1

    def wait_for(self, more: int) -> None:
        """Until so many more were acknowledged."""
        goal = len(self.acknowledged) + more
        eventually(
            lambda: len(self.acknowledged) >= goal, timeout_s=_TIMEOUT_S, what=f"{more} pushes"
        )

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def _accepted(answer: bytes, ref: str) -> bool:
    bands = b"".join(p[1:] for p in packets(answer) if p is not None and p[:1] == b"\x01")
    return b"ok " + ref.encode() in bands


def metric(demo: Demo, node: str, name: str, label: str = "") -> float:
    """The sum of a metric over its labels, or over those that have `label` in them."""
    lines = re.findall(rf"^{name}(.*) ([0-9.e+]+)$", demo.metrics(node), re.MULTILINE)
    return sum(float(value) for labels, value in lines if label in labels)


def rejoin(root: Path, pushes: int, compaction: int) -> bool:
    """Whether everything that was promised held; prints what happened."""
    options = (
        "--set", f"raft.compaction_entries_min={compaction}", "--set", "raft.trailing_entries=100",
    )  # fmt: skip
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)

    with Demo(root / "demo", *options) as demo:
        seed = WorkTree(root / "seed")
        seed.commit("first")
        seed.git("push", "--quiet", demo.url("n1", PATH), "main")
        (old,) = (r for r in configurations(demo, "n1")[1] if r.startswith("n3@"))
        clients = Clients(demo, ["n1", "n2"])
        try:
            eventually(
                lambda: all(metric(demo, n, _COMPACTIONS) > 0 for n in ("n1", "n2", "n3")),
                timeout_s=_TIMEOUT_S, what="every log was cut",
            )  # fmt: skip
            before = len(clients.acknowledged)
            say(f"{before} pushes; every node has cut its log to the newest 100 entries")
            demo.kill("n3")
            shutil.rmtree(demo.nodes["n3"].data_dir)
            say("n3 is killed and its disk emptied")
            clients.wait_for(pushes)
            say(f"{len(clients.acknowledged) - before} more pushes, acknowledged by n1 and n2")
            began = time.monotonic()
            demo.restart("n3")
            eventually(
                lambda: members(demo, "n1").get("n3") == "voter"
                and all(old not in g for g in configurations(demo, "n1").values()),
                timeout_s=_TIMEOUT_S, what="n3 votes under a new replica id",
            )  # fmt: skip
            say(f"n3 votes again, {time.monotonic() - began:.1f} s after its start")
            clients.wait_for(100)
        finally:
            clients.finish()
        acknowledged = dict(clients.acknowledged)
        refs = refs_of(demo.url("n3", PATH))
        lost = [ref for ref, oid in acknowledged.items() if refs.get(ref) != oid]
        copied = clone(demo.url("n3", PATH), root / "clone", "--mirror")
        git("fsck", "--strict", cwd=copied)
        received = metric(demo, "n3", "quorepo_snapshot_bytes_total", 'action="received"')
        print(f"pushes: {len(acknowledged)} acknowledged, {clients.failed} failed, {len(lost)} "
              f"of them missing on n3")  # fmt: skip
        print(f"snapshot bytes received by n3: {received:.0f}; a clone from n3 is whole")
        return not lost


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pushes", type=int, default=5000)
    parser.add_argument("--compaction", type=int, default=3000, help="raft.compaction_entries_min")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quorepo-chaos-") as name:
        return 0 if rejoin(Path(name), arguments.pushes, arguments.compaction) else 1


if __name__ == "__main__":
    sys.exit(main())
