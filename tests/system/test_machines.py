"""Nodes on machines of their own, started as deploy/ says: one cluster, reached over TLS."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.machines import QUOREPO, STATE, Machines, can_make_machines
from support.waiting import eventually

pytestmark = pytest.mark.skipif(not can_make_machines(), reason="needs root and namespaces")

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMES = ["n1", "n2", "n3"]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path / "m", NAMES) as machines, machines.told_on_failure():
        yield machines


def give_all_the_same(machines: Machines) -> None:
    """What an operator does: one `quorepo init`, and the folder copied to every machine."""
    first = machines.folder("n1")
    joins = itertools.chain.from_iterable(("--join", f"{name}:7423") for name in NAMES)
    machines.run_on("n1", [str(QUOREPO), "init", STATE, "--bootstrap-expect", "3", *joins])
    for name in NAMES[1:]:
        shutil.copytree(first, machines.folder(name), dirs_exist_ok=True)


def cluster_ids(machines: Machines) -> set[str]:
    return {
        json.loads((machines.folder(name) / "data" / "node.json").read_text())["cluster_id"]
        for name in machines.names
    }


def test_the_compose_file_makes_one_cluster(machines: Machines, tmp_path: Path) -> None:
    """Its very command line, three times; a push to one node over HTTPS is cloned from another."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    (command,) = {tuple(service["command"]) for service in services.values()}
    assert sorted(services) == NAMES
    give_all_the_same(machines)
    for name in ("n3", "n1", "n2"):
        machines.start(name, [str(QUOREPO), *command])
    machines.wait_ready(*NAMES)
    assert len(cluster_ids(machines)) == 1
    machines.cli("n2", "repo", "create", "team/app")
    work = tmp_path / "work"
    machines.git("init", "-q", "-b", "main", str(work))
    machines.git("-C", str(work), "commit", "-q", "--allow-empty", "-m", "first")
    machines.git("-C", str(work), "push", "-q", machines.url("n1", "team/app"), "main")
    machines.git("clone", "-q", machines.url("n3", "team/app"), str(tmp_path / "clone"))
    pushed, cloned = (
        machines.git("-C", str(path), "rev-parse", "HEAD").stdout
        for path in (work, tmp_path / "clone")
    )
    assert pushed == cloned
    # Who does not know the CA, speaks no TLS or has no token gets nothing.
    url = machines.url("n1", "team/app")
    assert machines.client("git", "ls-remote", url, check=False).returncode != 0
    plain = url.replace("https://", "http://")
    assert machines.git("ls-remote", plain, check=False).returncode != 0
    ca = str(machines.ca())
    metrics = machines.client("curl", "-s", "--cacert", ca, "https://n1:7422/metrics")
    assert "quorepo_raft_role" not in metrics.stdout
    token = url.partition("admin:")[2].partition("@")[0]
    metrics = machines.client(
        "curl", "-s", "--cacert", ca, "-H", f"Authorization: Bearer {token}",
        "https://n1:7422/metrics",
    )  # fmt: skip
    assert "quorepo_raft_role" in metrics.stdout
    assert 'quorepo_listener_certificate_expiry_seconds{listener="http"}' in metrics.stdout
    for name in NAMES:
        assert token not in machines.log(name)


_ALWAYS = [("n1", "formation.before_marker"), ("n3", "enrolment.before_certificate")]
_LONG = [
    ("n1", "enrolment.before_ca_key"),
    ("n2", "enrolment.before_ca"),
    ("n2", "enrolment.before_key"),
    ("n1", "enrolment.done"),
    ("n1", "formation.before_founding"),
    ("n1", "formation.after_founding"),
    ("n3", "formation.before_adopting"),
    ("n2", "formation.before_marker"),
    ("n3", "formation.after_adopting"),
]


@pytest.mark.parametrize(
    ("victim", "step"),
    [*_ALWAYS, *(pytest.param(*case, marks=pytest.mark.slow) for case in _LONG)],
)
def test_a_node_killed_at_any_step_of_the_start(machines: Machines, victim: str, step: str) -> None:
    """It is started again, and one cluster comes of it; exactly one, whoever died where."""
    give_all_the_same(machines)
    machines.serve(victim, failpoint=f"{step}=kill")
    machines.serve(*(other for other in NAMES if other != victim))
    if step.startswith("enrolment"):
        assert machines.ended(victim) == -9
    else:
        eventually(lambda: "killed by SIGKILL" in machines.log(victim), timeout_s=60, what=step)
        machines.kill(victim)
    machines.serve(victim)
    machines.wait_ready(*NAMES)
    assert len(cluster_ids(machines)) == 1
