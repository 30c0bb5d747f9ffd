"""bundle-uri: a clone that begins with a download of the base pack, at a signed URL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree, git, refs_of
from support.raw_http import FETCH_TYPE, Answer, packet, request

COMMITS = 200  # with their trees and files more objects than the least that is worth a bundle


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeUnderTest]:
    config = edge_config(
        tmp_path_factory.mktemp("bundles") / "data", git={"hidden_refs": ["refs/internal"]}
    )
    with running_edge(config) as server:
        yield server


def grown(path: Path, object_format: str = "sha1") -> WorkTree:
    """A repository of some hundred objects, by git's fast-import."""
    work = WorkTree.__new__(WorkTree)
    work.path = path
    git("init", "--quiet", "--initial-branch=main", f"--object-format={object_format}", str(path))
    stream = []
    for number in range(COMMITS):
        text = f"content {number}\n"
        stream.append(
            f"commit refs/heads/main\ncommitter A <a@example.com> {1_700_000_000 + number} +0000\n"
            f"data 2\nc\n\nM 100644 inline file{number}\ndata {len(text)}\n{text}\n"
        )
    git("fast-import", "--quiet", cwd=path, stdin="".join(stream).encode())
    git("reset", "--quiet", "--hard", "main", cwd=path)
    return work


def ask(server: EdgeUnderTest, path: str, *arguments: str, object_format: str = "sha1") -> Answer:
    lines = [packet(b"command=bundle-uri\n")]
    lines.append(packet(f"object-format={object_format}\n".encode()))
    body = b"".join(lines)
    if arguments:
        body += b"0001" + b"".join(packet(f"{a}\n".encode()) for a in arguments)
    headers = {"Content-Type": FETCH_TYPE, "Git-Protocol": "version=2"}
    return request(server, "POST", f"/{path}/git-upload-pack", body + b"0000", headers)


def url_of(answer: Answer) -> str:
    found = re.search(rb"bundle\.base\.uri=(\S+)\n", answer.body)
    assert found, answer.body
    return found[1].decode()


@pytest.fixture(scope="module")
def pushed(server: EdgeUnderTest, tmp_path_factory: pytest.TempPathFactory) -> WorkTree:
    work = grown(tmp_path_factory.mktemp("grown") / "work")
    work.git("push", "--quiet", server.url("bundles/app"), "main")
    return work


def get(server: EdgeUnderTest, target: str) -> Answer:
    """Without any credential but the URL."""
    return request(server, "GET", target, authorized=False)


def test_the_command_is_advertised_and_answers_a_list_of_one(
    server: EdgeUnderTest, pushed: WorkTree
) -> None:
    headers = {"Git-Protocol": "version=2"}
    advertised = request(
        server, "GET", "/bundles/app/info/refs?service=git-upload-pack", headers=headers
    )
    assert b"bundle-uri\n" in advertised.body
    body = ask(server, "bundles/app").body
    assert b"bundle.version=1\n" in body
    assert b"bundle.mode=all\n" in body
    assert body.endswith(b"0000")


def test_git_clones_with_the_bundle_and_fetches_the_rest(
    server: EdgeUnderTest, pushed: WorkTree, tmp_path: Path
) -> None:
    uri = url_of(ask(server, "bundles/app"))
    pushed.commit("after the bundle")
    pushed.git("push", "--quiet", server.url("bundles/app"), "main")
    target = tmp_path / "clone"
    done = git(
        "clone", "--quiet", f"--bundle-uri=http://{server.address}{uri}",
        server.url("bundles/app"), str(target), environment={"GIT_TRACE_PACKET": "1"},
    )  # fmt: skip
    git("fsck", "--full", "--strict", cwd=target)
    assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == pushed.head()
    base = git("for-each-ref", "refs/bundles", cwd=target).stdout
    assert "refs/bundles/base-1" in base
    have = base.split()[0]
    assert f"have {have}" in done.stderr, "the fetch goes on from the bundle"


def test_the_bundle_is_valid_for_git(
    server: EdgeUnderTest, pushed: WorkTree, tmp_path: Path
) -> None:
    answer = get(server, url_of(ask(server, "bundles/app")))
    assert answer.status == 200
    file = tmp_path / "base.bundle"
    file.write_bytes(answer.body)
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    git("bundle", "verify", str(file), cwd=pushed.path)
    heads = git("bundle", "list-heads", str(file), cwd=pushed.path).stdout.split()
    assert heads[1] == "refs/heads/base-1"


def test_sha256_repositories_have_bundles_of_version_3(
    server: EdgeUnderTest, tmp_path: Path
) -> None:
    from quorepo.storage.objectformat import ObjectFormat

    server.do(
        server.edge.repositories.create(
            "bundles/long",
            origin=server.edge.origin("admin"),
            object_format=ObjectFormat.SHA256,
        )
    )
    work = grown(tmp_path / "work", "sha256")
    work.git("push", "--quiet", server.url("bundles/long"), "main")
    answer = get(server, url_of(ask(server, "bundles/long", object_format="sha256")))
    assert answer.body.startswith(b"# v3 git bundle\n@object-format=sha256\n")
    file = tmp_path / "base.bundle"
    file.write_bytes(answer.body)
    git("bundle", "verify", str(file), cwd=work.path)


@pytest.mark.parametrize("change", ["signature", "expires", "digest", "path", "missing"])
def test_a_url_that_was_not_given_is_refused(
    server: EdgeUnderTest, pushed: WorkTree, change: str
) -> None:
    uri = url_of(ask(server, "bundles/app"))
    parts = urlsplit(uri)
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    target = {
        "signature": f"{parts.path}?expires={query['expires']}&signature={'0' * 64}",
        "expires": f"{parts.path}?expires={int(query['expires']) + 1}"
        f"&signature={query['signature']}",
        "digest": f"/bundles/app.git/bundles/{'0' * 64}.bundle?{parts.query}",
        "path": uri.replace("/bundles/app.git/", "/bundles/none.git/"),
        "missing": parts.path,
    }[change]
    answer = get(server, target)
    assert answer.status == 403
    assert b"was not given by this cluster" in answer.body
    assert b"PACK" not in answer.body


def test_a_url_ends(server: EdgeUnderTest, pushed: WorkTree) -> None:
    uri = url_of(ask(server, "bundles/app"))
    usual = server.edge.clock_ms
    late_ms = usual() + int(server.edge.config.limits.bundle_url_s * 1000) + 2000
    server.edge.clock_ms = lambda: late_ms
    try:
        answer = get(server, uri)
    finally:
        server.edge.clock_ms = usual
    assert answer.status == 403
    assert b"the time of this bundle URL is over" in answer.body


def test_what_a_reader_may_not_see_is_in_no_bundle(server: EdgeUnderTest, tmp_path: Path) -> None:
    """The pack holds what only a hidden ref reaches: it is not offered."""
    work = grown(tmp_path / "work")
    work.git("push", "--quiet", server.url("bundles/hidden"), "main")
    before = refs_of(server.url("bundles/hidden"))
    uri = url_of(ask(server, "bundles/hidden"))
    view = server.do(server.edge.reads.open("bundles/hidden"))
    assert get(server, uri).status == 200
    # main goes back behind what the pack holds; only an internal ref keeps it.
    old = work.git("rev-parse", "main~150").stdout.strip()
    work.git("push", "--quiet", "--force", server.url("bundles/hidden"), f"{old}:refs/heads/main")
    assert view.repository_id
    assert before != refs_of(server.url("bundles/hidden"))
    assert ask(server, "bundles/hidden").body == b"0000"
    gone = get(server, uri)
    assert gone.status == 404
    assert b"is not offered any more" in gone.body


def test_arguments_and_small_repositories(server: EdgeUnderTest, work: WorkTree) -> None:
    work.commit("small")
    work.git("push", "--quiet", server.url("bundles/small"), "main")
    assert ask(server, "bundles/small").body == b"0000", "nothing is worth a bundle"
    assert b"bundle-uri: unexpected argument: 'what'" in ask(server, "bundles/small", "what").body


def test_it_can_be_switched_off(tmp_path: Path, work: WorkTree) -> None:
    with running_edge(edge_config(tmp_path / "data", git={"bundle_uri": False})) as server:
        work.commit("first")
        work.git("push", "--quiet", server.url("off"), "main")
        headers = {"Git-Protocol": "version=2"}
        advertised = request(
            server, "GET", "/off/info/refs?service=git-upload-pack", headers=headers
        )
        assert b"bundle-uri" not in advertised.body
        assert b"invalid command 'bundle-uri'" in ask(server, "off").body
