"""What an operator sees: status, repositories, metrics, health."""

from __future__ import annotations

import json
import re
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.demo import Demo
from support.git import WorkTree, git, refs_of
from support.waiting import eventually

pytestmark = pytest.mark.system


@pytest.mark.parametrize("node", ["n1", "n2", "n3"])
def test_status_shows_every_group_from_every_node(cluster: Demo, node: str) -> None:
    status = cluster.status(node)
    assert {entry["name"] for entry in status["nodes"]} == set(cluster.nodes)
    assert [group["group"] for group in status["groups"]] == [0, 1]
    for group in status["groups"]:
        assert group["leader"] in cluster.nodes
        assert group["term"] >= 1
        assert group["commit_index"] >= 1
        assert {replica["node"] for replica in group["replicas"]} == set(cluster.nodes)
        roles = sorted(replica["role"] for replica in group["replicas"])
        assert roles == ["leader", "voter", "voter"]


def test_replicas_apply_what_was_committed(cluster: Demo, work: WorkTree) -> None:
    work.commit("first")
    work.git("push", "--quiet", cluster.url("n1", "operator/applied"), "main")

    def all_applied() -> bool:
        group = cluster.status("n2")["groups"][1]
        commit = group["commit_index"]
        return all(replica["applied_index"] >= commit for replica in group["replicas"])

    eventually(all_applied, what="every replica applied everything")


def test_status_table_is_for_people(cluster: Demo) -> None:
    shown = cluster.cli("status").stdout
    for name in cluster.nodes:
        assert name in shown
    assert "leader" in shown


def test_status_shows_how_the_node_that_was_asked_serves(
    cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    work.commit("first")
    url = cluster.url("n2", "operator/served")
    work.git("push", "--quiet", url, "main")
    git("clone", "--quiet", url, str(tmp_path / "clone"))
    nodes = {node["name"]: node["serving"] for node in cluster.status("n2")["nodes"]}
    assert nodes["n1"] is None
    assert nodes["n2"]["answers_kept"] >= 1
    assert nodes["n2"]["answers_bytes_max"] == 2**30
    assert nodes["n2"]["workers"] >= 1
    assert nodes["n2"]["jobs_waiting_max"] >= 1
    shown = " ".join(cluster.cli("status", node="n2").stdout.split())
    assert re.search(r"Serving at n2: \d+ answers kept \(.* 0 packs to derive", shown)
    assert "Serving at n1" not in shown
    metrics = cluster.metrics("n2")
    assert re.search(r"^quorepo_fetch_cache_answers [1-9]", metrics, re.MULTILINE)
    assert re.search(r"^quorepo_packs_to_derive 0", metrics, re.MULTILINE)


def test_repositories_are_created_listed_shown_and_deleted(cluster: Demo, work: WorkTree) -> None:
    cluster.cli("repo", "create", "operator/made")
    names = [row["path"] for row in json.loads(cluster.cli("repo", "list", "-o", "json").stdout)]
    assert "operator/made" in names
    oid = work.commit("first")
    work.git("push", "--quiet", cluster.url("n2", "operator/made"), "main")
    info = json.loads(cluster.cli("repo", "info", "operator/made", "-o", "json", node="n3").stdout)
    assert info["path"] == "operator/made"
    assert refs_of(cluster.url("n3", "operator/made"))["refs/heads/main"] == oid
    again = cluster.cli("repo", "create", "operator/made", check=False)
    assert again.returncode != 0
    assert "operator/made" in again.stderr
    cluster.cli("repo", "delete", "operator/made", "--yes", node="n3")
    gone = cluster.cli("repo", "info", "operator/made", check=False)
    assert gone.returncode != 0
    assert "next: quorepo repo list" in gone.stderr
    no_refs = cluster.cli("ref", "list", "operator/made", check=False)
    assert "next: quorepo repo list" in no_refs.stderr
    work.git("push", "--quiet", cluster.url("n1", "operator/made"), "main")
    assert refs_of(cluster.url("n2", "operator/made"))["refs/heads/main"] == oid


def test_a_node_without_the_cas_key_says_what_to_do_for_a_join_token(cluster: Demo) -> None:
    """The demo's CA stays with the demo."""
    refused = cluster.cli("node", "token", "--node", "n4", check=False)
    assert refused.returncode == 1
    what, _, next_step = refused.stderr.partition("\nnext: ")
    assert what.endswith("so it cannot sign for a node that joins; nothing was changed")
    assert "quorepo certificate issue --node NAME" in next_step


def test_wrong_token_is_told_what_to_do(cluster: Demo) -> None:
    import os
    import subprocess
    import sys

    answer = subprocess.run(
        [sys.executable, "-m", "quorepo", "--endpoint", cluster.nodes["n1"].grpc, "repo", "list"],
        env={**os.environ, "QUOREPO_TOKEN": "wrong-token-wrong-token"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode != 0
    assert "QUOREPO_TOKEN" in answer.stderr


def test_metrics_cover_the_write_path(cluster: Demo, work: WorkTree) -> None:
    work.commit("first")
    work.git("push", "--quiet", cluster.url("n1", "operator/metrics"), "main")
    refs_of(cluster.url("n1", "operator/metrics"))
    text = cluster.metrics("n1")
    for name in (
        "quorepo_raft_role", "quorepo_raft_term", "quorepo_raft_commit_index",
        "quorepo_raft_applied_index", "quorepo_proposals_total", "quorepo_proposal_seconds",
        "quorepo_apply_seconds", "quorepo_journal_fsync_seconds",
    ):  # fmt: skip
        assert re.search(rf"^{name}", text, re.MULTILINE), name
    assert re.search(r"^quorepo_push\w*_total.* [1-9]", text, re.MULTILINE)
    lag = "".join(cluster.metrics(name) for name in cluster.nodes)
    assert "quorepo_raft_replica_lag_entries" in lag


def test_health_and_reflection_need_no_token_on_loopback(cluster: Demo) -> None:
    for node in cluster.nodes.values():
        with grpc.insecure_channel(node.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "liveness", "readiness"):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            answers = list(reflection.ServerReflectionInfo(iter([request]), timeout=10))
            names = {s.name for s in answers[0].list_services_response.service}
            assert "quorepo.v1.RepositoryService" in names
