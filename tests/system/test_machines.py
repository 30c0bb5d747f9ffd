"""Nodes on machines of their own, started as deploy/ says: one cluster, reached over TLS."""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.machines import QUOREPO, STATE, Machines, can_make_machines
from support.waiting import eventually

from quorepo.cluster.peer.join_token import read_join_token
from quorepo.storage.errors import ConfigError

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


def begin_with_one(machines: Machines) -> None:
    """n1 begins a cluster; the others are told where it is."""
    machines.run_on("n1", [str(QUOREPO), "init", STATE, "--bootstrap"])
    for name in ("n2", "n3"):
        machines.run_on(name, [str(QUOREPO), "init", STATE, "--join", "n1:7423"])
    machines.serve("n1")
    machines.wait_ready("n1")


def give_token(machines: Machines, name: str, *options: str) -> Path:
    """What an operator does: a token of a member, carried to the machine."""
    path = machines.folder(name) / "secrets" / "join-token"
    machines.cli("n1", "node", "token", "--file", str(path), *options)
    assert path.stat().st_mode & 0o777 == 0o600
    return path


def voters(machines: Machines, ask: str) -> set[str]:
    groups = json.loads(machines.cli(ask, "status", "-o", "json").stdout)["groups"]
    sets = [{r["node"] for r in group["replicas"] if r["votes"]} for group in groups]
    assert all(nodes == sets[0] for nodes in sets), "not in every group yet"
    return sets[0]


def test_nodes_join_with_a_token_each(machines: Machines, tmp_path: Path) -> None:
    begin_with_one(machines)
    machines.cli("n1", "repo", "create", "team/app")
    work = tmp_path / "work"
    machines.git("init", "-q", "-b", "main", str(work))
    machines.git("-C", str(work), "commit", "-q", "--allow-empty", "-m", "first")
    machines.git("-C", str(work), "push", "-q", machines.url("n1", "team/app"), "main")
    used = give_token(machines, "n2")
    machines.serve("n2")
    machines.wait_ready("n2")
    # The same token again, from another machine: refused, with what to do.
    copied = machines.folder("n3") / "secrets" / "join-token"
    shutil.copy(used, copied)
    machines.serve("n3")
    assert machines.ended("n3") == 78
    assert "was used already, by replica" in machines.log("n3")
    assert "quorepo node token" in machines.log("n3")
    # One for another name, and one that is over.
    copied.unlink()
    give_token(machines, "n3", "--node", "n4")
    machines.serve("n3")
    assert machines.ended("n3") == 78
    assert "is for node 'n4', not for 'n3'" in machines.log("n3")
    copied.unlink()
    give_token(machines, "n3", "--ttl", "1s")
    eventually(lambda: is_over(copied), what="the token is over")
    machines.serve("n3")
    assert machines.ended("n3") == 78
    assert "expired at" in machines.log("n3")
    copied.unlink()
    # One that was taken back.
    give_token(machines, "n3")
    (opened,) = (t for t in join_tokens(machines) if t["state"] == "open" and t["node"] is None)
    machines.cli("n1", "node", "token", "revoke", opened["id"])
    machines.serve("n3")
    assert machines.ended("n3") == 78
    assert "the cluster knows no such join token" in machines.log("n3")
    copied.unlink()
    (came,) = (t for t in join_tokens(machines) if t["state"] == "used")
    assert came["used_by"].startswith("n2@")
    refused = machines.cli("n1", "node", "token", "revoke", came["id"], check=False)
    assert "quorepo node remove n2" in refused.stderr
    give_token(machines, "n3", "--node", "n3")
    machines.serve("n3")
    machines.wait_ready("n3")
    eventually(lambda: voters(machines, "n3") == set(NAMES), timeout_s=60, what="three voters")
    assert len(cluster_ids(machines)) == 1
    # The users came along, and the first machine is not needed any more.
    machines.kill("n1")
    eventually(
        lambda: machines.git("ls-remote", machines.url("n2", "team/app"), check=False).returncode
        == 0,
        timeout_s=60, what="served without n1",
    )  # fmt: skip
    machines.git("clone", "-q", machines.url("n3", "team/app"), str(tmp_path / "clone"))
    secret = used.read_text().strip()
    for name in NAMES:
        assert secret not in machines.log(name)


def join_tokens(machines: Machines) -> list[dict[str, Any]]:
    """What the directory knows; of a secret there is nothing in it."""
    told = machines.cli("n1", "node", "token", "list", "-o", "json").stdout
    assert "quorepo-join" not in told
    tokens: list[dict[str, Any]] = json.loads(told)
    return tokens


def test_two_nodes_join_at_once(machines: Machines) -> None:
    begin_with_one(machines)
    for name in ("n2", "n3"):
        give_token(machines, name)
    machines.serve("n2", "n3")
    machines.wait_ready("n2", "n3")
    eventually(lambda: voters(machines, "n1") == set(NAMES), timeout_s=60, what="three voters")
    assert len(cluster_ids(machines)) == 1


def is_over(token: Path) -> bool:
    try:
        read_join_token(token, datetime.datetime.now(datetime.UTC))
    except ConfigError:
        return True
    return False


def test_a_node_is_found_again_at_another_address(machines: Machines) -> None:
    """Once by its name, which is looked up again; once by another advertised address."""
    give_all_the_same(machines)
    machines.serve(*NAMES)
    machines.wait_ready(*NAMES)
    machines.kill("n2")
    machines.move("n2", "10.99.0.77")
    machines.serve("n2")
    machines.wait_ready("n2")
    everybody_is_connected(machines)
    machines.kill("n3")
    config = machines.folder("n3") / "quorepo.toml"
    text = config.read_text()
    assert "[advertise]" in text
    config.write_text(text.replace("[advertise]", '[advertise]\nhost = "10.99.0.3"'))
    machines.serve("n3")
    machines.wait_ready("n3")

    def registered() -> bool:
        nodes = json.loads(machines.cli("n1", "status", "-o", "json").stdout)["nodes"]
        return any(node["peer"] == "10.99.0.3:7423" for node in nodes)

    eventually(registered, timeout_s=60, what="the new address is registered")
    eventually(
        lambda: machines.log("n1").count("replica moved")
        + machines.log("n2").count("replica moved")
        + machines.log("n3").count("replica moved") == 2,
        timeout_s=60, what="moved in both groups",
    )  # fmt: skip
    everybody_is_connected(machines)


def everybody_is_connected(machines: Machines) -> None:
    def connected() -> bool:
        for name in NAMES:
            groups = json.loads(machines.cli(name, "status", "-o", "json").stdout)["groups"]
            replicas = [replica for group in groups for replica in group["replicas"]]
            if len(replicas) != 6 or not all(replica["connected"] for replica in replicas):
                return False
        return True

    eventually(connected, timeout_s=60, what="all are connected")


_JOINING = [
    ("n2", "joining.after_answer"),
    ("n1", "admission.after_use"),
]
_JOINING_LONG = [
    ("n2", "joining.before_asking"),
    ("n2", "enrolment.before_ca_key"),
    ("n2", "enrolment.before_certificate"),
    ("n2", "enrolment.done"),
    ("n2", "formation.before_rejoining"),
    ("n2", "formation.after_rejoining"),
    ("n2", "formation.before_marker"),
    ("n1", "admission.before_use"),
]


@pytest.mark.parametrize(
    ("victim", "step"),
    [*_JOINING, *(pytest.param(*case, marks=pytest.mark.slow) for case in _JOINING_LONG)],
)
def test_a_node_killed_at_any_step_of_joining(machines: Machines, victim: str, step: str) -> None:
    """Newcomer or member: it starts again, and with the same token the newcomer is in, once."""
    begin_with_one(machines)
    give_token(machines, "n2")
    if victim == "n1":
        machines.kill("n1")
        machines.serve("n1", failpoint=f"{step}=kill")
        machines.wait_ready("n1")
        machines.serve("n2")
    else:
        machines.serve("n2", failpoint=f"{step}=kill")
    if step.startswith(("joining", "enrolment")):
        assert machines.ended("n2") in (78, -9)
    else:
        eventually(lambda: "killed by SIGKILL" in machines.log(victim), timeout_s=60, what=step)
        machines.kill(victim)
    machines.serve(victim)
    machines.wait_ready("n1", "n2")
    eventually(lambda: voters(machines, "n1") == {"n1", "n2"}, timeout_s=60, what="two voters")
    status = json.loads(machines.cli("n1", "status", "-o", "json").stdout)
    assert all(len(group["replicas"]) == 2 for group in status["groups"])
