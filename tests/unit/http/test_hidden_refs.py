"""Hidden refs, deleted branches: neither a ref nor an object of theirs reaches a git client."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree, git
from support.raw_http import FETCH_TYPE, packet, request

from quorepo.rpc.git_settings import GitSection
from quorepo.rpc.push_checks import Change

HIDDEN = b"refs/internal/keep"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeUnderTest]:
    """Hides refs/internal."""
    config = edge_config(
        tmp_path_factory.mktemp("hiding") / "data", git={"hidden_refs": ["refs/internal"]}
    )
    with running_edge(config) as server:
        yield server


@pytest.fixture
def secret(server: EdgeUnderTest, work: WorkTree, path: str) -> tuple[str, str]:
    """A commit and its blob that only a hidden ref reaches; main is pushed without them."""
    work.commit("first")
    work.git("checkout", "--quiet", "-b", "secret")
    oid = work.commit("secret", {"secret.txt": "secret\n"})
    blob = work.git("rev-parse", "HEAD:secret.txt").stdout.strip()
    work.git("push", "--quiet", server.url(path), "main", "secret")
    hide(server, path, oid)
    work.git("push", "--quiet", server.url(path), "--delete", "secret")
    return oid, blob


def hide(server: EdgeUnderTest, path: str, oid: str) -> None:
    """As the API would: a hidden ref that is set on the server."""
    view = server.do(server.edge.reads.open(path))
    command = server.edge.origin("admin").command()
    transaction = command.transaction
    transaction.repository_id = view.repository_id
    transaction.verified_revision = view.row.counter
    transaction.prune_epoch = view.row.prune_epoch
    change = Change(HIDDEN, bytes.fromhex(oid), None)
    transaction.ref_updates.add(name=change.name, new_oid=change.new or b"")
    server.core.apply(1, command)


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_a_hidden_ref_is_not_listed_nor_cloned(
    server: EdgeUnderTest, secret: tuple[str, str], path: str, version: str, tmp_path: Path
) -> None:
    assert HIDDEN in server.do(server.edge.reads.open(path)).refs
    protocol = ("-c", f"protocol.version={version}")
    assert "internal" not in git(*protocol, "ls-remote", server.url(path)).stdout
    target = tmp_path / "mirror"
    git(*protocol, "clone", "--quiet", "--mirror", server.url(path), str(target))
    listing = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=target)
    assert not set(secret) & set(listing.stdout.split())
    shown = git(*protocol, "ls-remote", server.url(path), HIDDEN.decode()).stdout
    assert shown == ""


def test_what_a_hidden_ref_reaches_is_refused_by_name_and_by_id(
    server: EdgeUnderTest, secret: tuple[str, str], path: str, tmp_path: Path
) -> None:
    git("init", "--quiet", str(tmp_path))
    for version, oid in itertools.product(("0", "2"), secret):
        refused = git(
            "-c", f"protocol.version={version}", "fetch", server.url(path), oid,
            cwd=tmp_path, check=False,
        )  # fmt: skip
        assert refused.returncode != 0
        assert f"not our ref {oid}" in refused.stderr
    body = packet(b"command=fetch") + b"0001" + packet(b"want-ref " + HIDDEN) + b"0000"
    headers = {"Content-Type": FETCH_TYPE, "Git-Protocol": "version=2"}
    answer = request(server, "POST", f"/{path}/git-upload-pack", body, headers)
    assert b"ERR unknown ref refs/internal/keep" in answer.body
    body = packet(b"command=fetch") + b"0001" + packet(b"deepen-not " + HIDDEN)
    body += packet(
        b"want " + server.do(server.edge.reads.open(path)).refs[b"refs/heads/main"].hex().encode()
    )
    answer = request(server, "POST", f"/{path}/git-upload-pack", body + b"0000", headers)
    assert b"ERR git upload-pack: unknown deepen-not" in answer.body


def test_a_have_of_a_hidden_commit_is_no_oracle_for_its_content(
    server: EdgeUnderTest, secret: tuple[str, str], work: WorkTree, path: str
) -> None:
    """A client that names a secret as its own gets nothing that it could not fetch without it."""
    main = work.git("rev-parse", "main").stdout.strip()
    lines = (f"want {main}", f"have {secret[0]}", "done")
    body = packet(b"command=fetch") + b"0001" + b"".join(packet(x.encode()) for x in lines)
    headers = {"Content-Type": FETCH_TYPE, "Git-Protocol": "version=2"}
    answer = request(server, "POST", f"/{path}/git-upload-pack", body + b"0000", headers)
    assert b"packfile" in answer.body
    assert secret[0].encode() not in answer.body


def test_a_push_to_a_hidden_ref_is_refused_in_gits_words(
    server: EdgeUnderTest, secret: tuple[str, str], work: WorkTree, path: str
) -> None:
    work.commit("more")
    for name in ("refs/internal/new", "refs/internal/keep"):
        refused = work.git("push", server.url(path), f"HEAD:{name}", check=False)
        assert "deny updating a hidden ref" in refused.stderr
    assert list(server.do(server.edge.reads.open(path)).refs) == [b"refs/heads/main", HIDDEN]


def test_what_looks_alike_is_not_hidden(
    server: EdgeUnderTest, secret: tuple[str, str], work: WorkTree, path: str
) -> None:
    work.git("push", "--quiet", server.url(path), "main:refs/internals/x")
    assert "refs/internals/x" in git("ls-remote", server.url(path)).stdout


@pytest.mark.parametrize("prefix", ["", "refs", "refs/", "refs/heads", "heads", "refs/x/", "a b"])
def test_a_wrong_prefix_is_a_mistake_in_the_configuration(prefix: str) -> None:
    with pytest.raises(ValidationError, match="start of ref names"):
        GitSection(hidden_refs=(prefix,))
