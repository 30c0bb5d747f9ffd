"""What real git clients get: the objects that C git gives, under every protocol version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.git import git
from support.git_http import StoredRepository, serve

# Version 1 is version 0 with one line more; the tests of clone and ls-remote cover it.
VERSIONS = (0, 2)


@pytest.fixture
def url(stored: StoredRepository) -> Iterator[str]:
    with serve(stored) as url:
        yield url


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> list[str]:
    return ["-c", f"protocol.version={request.param}"]


def objects_of(repository: Path) -> set[str]:
    """All objects present, reachable or not; promised ones are not fetched."""
    listing = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=repository)
    return set(listing.stdout.split())


def check(repository: Path) -> None:
    git("fsck", "--full", "--strict", "--no-progress", cwd=repository)


def peer_clone(stored: StoredRepository, target: Path, *options: str) -> Path:
    """The same clone from C git, which sees the same refs."""
    git("config", "uploadpack.hideRefs", "refs/hidden", cwd=stored.source)
    git("config", "uploadpack.allowFilter", "true", cwd=stored.source)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=stored.source)
    git("clone", "--quiet", "--bare", *options, f"file://{stored.source}", str(target))
    return target


@pytest.mark.parametrize("version", [0, 1, 2], indirect=True)
def test_clone_has_the_objects_of_git(
    stored: StoredRepository, url: str, version: list[str], tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    git(*version, "clone", "--quiet", "--bare", url, str(ours))
    check(ours)
    theirs = peer_clone(stored, tmp_path / "theirs")
    assert objects_of(ours) == objects_of(theirs)
    assert git("for-each-ref", cwd=ours).stdout == git("for-each-ref", cwd=theirs).stdout
    assert (ours / "HEAD").read_text() == (theirs / "HEAD").read_text()


def test_hidden_and_dropped_objects_are_never_sent(
    stored: StoredRepository, url: str, version: list[str], tmp_path: Path
) -> None:
    git(*version, "clone", "--quiet", "--mirror", url, str(tmp_path / "ours"))
    secret = git("rev-parse", "refs/hidden/secret", cwd=stored.source).stdout.strip()
    assert secret not in objects_of(tmp_path / "ours")
    git("init", "--quiet", str(tmp_path / "thief"))
    stolen = git(*version, "fetch", url, secret, cwd=tmp_path / "thief", check=False)
    assert stolen.returncode != 0
    assert "not our ref" in stolen.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--depth=1",),
        ("--depth=3",),
        ("--depth=3", "--no-single-branch"),
        ("--depth=100",),
        ("--shallow-since=2023-11-15T00:00:00Z",),
        ("--shallow-exclude=v1.0",),
        ("--single-branch", "--branch=topic"),
        ("--single-branch", "--branch=v1.0", "--no-tags"),
        ("--filter=blob:none",),
        ("--filter=blob:limit=1k",),
        ("--filter=tree:0",),
        ("--filter=tree:1",),
        ("--filter=tree:2",),
        ("--filter=combine:tree:3+blob:limit=200",),
        ("--filter=blob:none", "--depth=2"),
    ],
    ids=" ".join,
)
def test_partial_and_shallow_clones_have_the_objects_of_git(
    stored: StoredRepository, url: str, version: list[str], options: tuple[str, ...], tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    git(*version, "clone", "--quiet", "--bare", *options, url, str(ours))
    check(ours)
    theirs = peer_clone(stored, tmp_path / "theirs", *options)
    assert objects_of(ours) == objects_of(theirs)
    shallow = (ours / "shallow", theirs / "shallow")
    assert [p.read_text().splitlines() if p.exists() else [] for p in shallow[:1]] == [
        p.read_text().splitlines() if p.exists() else [] for p in shallow[1:]
    ]


def test_incremental_fetch_sends_what_is_new_only(
    stored: StoredRepository, url: str, version: list[str], tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    git(*version, "init", "--quiet", "--bare", str(ours))
    git(*version, "fetch", "--quiet", url, "tag", "v1.0", cwd=ours)
    before = objects_of(ours)
    git(*version, "fetch", "--quiet", url, "refs/heads/*:refs/heads/*", cwd=ours)
    check(ours)
    built = [answer for job, answer in stored.jobs_run if job == "build_pack"]
    # The tags on what was fetched came along with it: a request of their own was not needed.
    assert len(built) == 2
    wanted = git(
        "rev-list", "--objects", "--no-object-names", "--all", "^v1.0^{}", cwd=ours
    ).stdout.split()
    tags = git("for-each-ref", "--format=%(objectname)", "refs/tags", cwd=ours).stdout.split()
    assert built[1]["objects"] <= len({*wanted, *tags})
    assert len(objects_of(ours) - before) > 5


def test_fetch_with_nothing_in_common(
    stored: StoredRepository, url: str, version: list[str], tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    git("init", "--quiet", str(ours))
    for number in range(40):
        git("commit", "--quiet", "--allow-empty", f"--message=mine {number}", cwd=ours)
    git(*version, "fetch", "--quiet", url, "main", cwd=ours)
    check(ours)


def test_fetch_after_diverging_negotiates(
    stored: StoredRepository, url: str, version: list[str], tmp_path: Path
) -> None:
    """Many local commits on top of an old state: the common ones are found in several rounds."""
    ours = tmp_path / "ours"
    git(*version, "clone", "--quiet", "--single-branch", "--branch=v1.0", url, str(ours))
    git("checkout", "--quiet", "-b", "mine", cwd=ours)
    for number in range(60):
        git("commit", "--quiet", "--allow-empty", f"--message=mine {number}", cwd=ours)
    stored.jobs_run.clear()
    git(*version, "fetch", "--quiet", url, "main", cwd=ours)
    check(ours)
    built = [answer for job, answer in stored.jobs_run if job == "build_pack"]
    assert [answer["objects"] < 40 for answer in built] == [True]


def test_shallow_clone_deepens_and_becomes_whole(
    stored: StoredRepository, url: str, version: list[str], tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    # Without tags: a client that has followed only some of them asks for the others with the same
    # `deepen-not`, which any server refuses as selecting nothing.
    git(*version, "clone", "--quiet", "--no-tags", "--depth=1", url, str(ours))

    def commits() -> int:
        return int(git("rev-list", "--count", "HEAD", cwd=ours).stdout)

    assert commits() == 1
    git(*version, "fetch", "--quiet", "--depth=3", cwd=ours)
    check(ours)
    three = commits()
    git(*version, "fetch", "--quiet", "--deepen=2", cwd=ours)
    check(ours)
    assert commits() > three > 1
    git(*version, "fetch", "--quiet", "--shallow-exclude=v1.0", cwd=ours)
    check(ours)
    git(*version, "fetch", "--quiet", "--unshallow", cwd=ours)
    check(ours)
    assert not (ours / ".git/shallow").exists()
    full = git("rev-list", "--count", "main", cwd=stored.source).stdout
    assert commits() == int(full)


def test_fetch_into_a_shallow_clone_stays_shallow(
    stored: StoredRepository, url: str, version: list[str], tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    git(*version, "clone", "--quiet", "--depth=2", "--branch=topic", url, str(ours))
    edge = (ours / ".git/shallow").read_text()
    git(*version, "fetch", "--quiet", url, "v1.0^{}", cwd=ours, check=False)
    git(*version, "fetch", "--quiet", "--depth=1", url, "main", cwd=ours)
    check(ours)
    assert set(edge.split()) <= set((ours / ".git/shallow").read_text().split())


@pytest.mark.parametrize("spec", ["blob:none", "tree:0"])
def test_partial_clone_fetches_what_it_misses(
    stored: StoredRepository, url: str, version: list[str], spec: str, tmp_path: Path
) -> None:
    """Lazy fetches by id: the checkout, an old file and its history."""
    ours = tmp_path / "ours"
    git(*version, "clone", "--quiet", f"--filter={spec}", url, str(ours))
    assert (ours / "new.txt").read_text() == "new\n"
    expected = git("show", "v1.0:big.txt", cwd=stored.source).stdout
    assert git(*version, "show", "v1.0:big.txt", cwd=ours).stdout == expected
    assert git(*version, "log", "--stat", "topic", "--", cwd=ours, check=False).returncode in (
        0,
        128,
    )
    git(*version, "log", "--stat", "origin/topic", "--", cwd=ours)
    check(ours)


def test_sparse_filter_is_refused_clearly(
    stored: StoredRepository, url: str, version: list[str], tmp_path: Path
) -> None:
    refused = git(
        *version, "clone", "--bare", "--filter=sparse:oid=main:README", url, str(tmp_path / "ours"),
        check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "filter 'sparse:oid' is not supported" in refused.stderr


def test_fetch_by_reachable_commit_id(
    stored: StoredRepository, url: str, version: list[str], tmp_path: Path
) -> None:
    git("init", "--quiet", str(tmp_path / "ours"))
    old = git("rev-parse", "main~5", cwd=stored.source).stdout.strip()
    git(*version, "fetch", "--quiet", "--depth=1", url, old, cwd=tmp_path / "ours")
    check(tmp_path / "ours")
    assert git("rev-parse", "FETCH_HEAD", cwd=tmp_path / "ours").stdout.strip() == old


def test_negotiate_only_reports_common_commits(
    stored: StoredRepository, url: str, tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    git("clone", "--quiet", url, str(ours))
    tip = git("rev-parse", "main", cwd=stored.source).stdout.strip()
    git("commit", "--quiet", "--allow-empty", "--message=mine", cwd=ours)
    common = git("fetch", "--negotiate-only", "--negotiation-tip=HEAD", "origin", cwd=ours)
    assert tip in common.stdout.split()
    mine = git("rev-parse", "HEAD", cwd=ours).stdout.strip()
    assert mine not in common.stdout.split()


@pytest.mark.parametrize("version", [0, 1, 2], indirect=True)
def test_ls_remote_shows_head_symref_and_peeled_tags(
    stored: StoredRepository, url: str, version: list[str]
) -> None:
    ours = git(*version, "ls-remote", "--symref", url).stdout.splitlines()
    git("config", "uploadpack.hideRefs", "refs/hidden", cwd=stored.source)
    theirs = git("ls-remote", "--symref", f"file://{stored.source}").stdout.splitlines()
    assert ours == theirs
    assert ours[0] == "ref: refs/heads/main\tHEAD"


def test_sha256_repository(tmp_path: Path) -> None:
    source = tmp_path / "source"
    git("init", "--quiet", "--object-format=sha256", "--initial-branch=main", str(source))
    (source / "a.txt").write_text("a\n")
    git("add", "a.txt", cwd=source)
    git("commit", "--quiet", "--message=first", cwd=source)
    git("tag", "--annotate", "--message=t", "v1", cwd=source)
    bare = tmp_path / "bare"
    git("clone", "--quiet", "--bare", str(source), str(bare))
    git("repack", "-adq", cwd=bare)
    with serve(StoredRepository(bare, tmp_path / "data")) as url:
        for version in (0, 2):
            ours = tmp_path / f"ours{version}"
            git("-c", f"protocol.version={version}", "clone", "--quiet", "--bare", url, str(ours))
            check(ours)
            assert objects_of(ours) == objects_of(bare)


def test_empty_repository_and_unborn_head(tmp_path: Path) -> None:
    source = tmp_path / "source"
    git("init", "--quiet", "--bare", "--initial-branch=trunk", str(source))
    with serve(StoredRepository(source, tmp_path / "data")) as url:
        for version, branch in ((0, None), (2, "ref: refs/heads/trunk")):
            ours = tmp_path / f"ours{version}"
            git("-c", f"protocol.version={version}", "clone", "--quiet", "--bare", url, str(ours))
            assert branch in (None, (ours / "HEAD").read_text().strip())
            assert git("ls-remote", url).stdout == ""
