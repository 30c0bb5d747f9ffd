"""Stored packs sent whole: when they are, and that nothing invisible is among them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from support.git import git
from support.git_http import StoredRepository

from quorepo.storage.git import jobs, pack_writer, whole_pack
from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.fetch_request import FetchRequest
from quorepo.storage.git.upload_pack import job_arguments
from quorepo.storage.git.whole_pack import PackRoots, pack_roots, reaches_all
from quorepo.storage.packs import PackCache, PackSet


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 commits on main in one pack, and two branches off it."""
    monkeypatch.setattr(whole_pack, "_OBJECTS_MIN", 1)
    monkeypatch.setattr(pack_writer, "_REFERENCE_BYTES_MIN", 0)
    folder = tmp_path / "source.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(folder))
    add(folder, "main", range(30))
    git("branch", "side", "main~3", cwd=folder)
    git("repack", "-adq", cwd=folder)
    return folder


def add(folder: Path, branch: str, numbers: range) -> None:
    stream = []
    for number in numbers:
        stream.append(f"commit refs/heads/{branch}\ncommitter C <c@x> {number} +0000\ndata 1\nc\n")
        if number == numbers.start and number:
            stream.append("from refs/heads/main^0\n")
        stream.append(f"M 644 inline f{number}\ndata 4\n{number:04}\n")
    git(
        "-c", "fastimport.unpackLimit=0", "fast-import", "--quiet",
        cwd=folder, stdin="".join(stream).encode(),
    )  # fmt: skip


def clone(repository: StoredRepository, **options: Any) -> dict[str, Any]:
    """The built answer to a clone of everything, its bytes under `pack`."""
    view = repository.view()
    wants = options.pop("wants", view.tips())
    fields = {"version": 2, "done": True, "ofs_delta": True, "thin_pack": True, **options}
    request = FetchRequest(wants=tuple(wants), **fields)
    arguments = {**job_arguments(request, view), "repository": repository.description()}
    negotiation = jobs.run("negotiate", arguments)
    out = repository.out_folder / "answer.pack"
    arguments |= {"negotiation": negotiation, "out": str(out), "by_reference": True}
    answer = jobs.run("build_pack", arguments)
    pieces = [Path(path).read_bytes()[start:end] for path, start, end in answer["parts"]]
    pack = b"".join(pieces)
    if not answer["is_sealed"]:
        pack += hashlib.sha1(pack, usedforsecurity=False).digest()
    assert len(pack) == answer["pack_bytes"]
    answer["out_exists"] = out.exists()
    out.unlink(missing_ok=True)
    answer["oids"] = oids_of(pack, repository.out_folder)
    assert len(answer["oids"]) == answer["objects"]
    return answer


def oids_of(pack: bytes, folder: Path) -> set[str]:
    file = folder / "check.pack"
    file.write_bytes(pack)
    git("index-pack", "-o", str(file.with_suffix(".idx")), str(file), cwd=folder)
    shown = git("show-index", cwd=folder, stdin=file.with_suffix(".idx").read_bytes()).stdout
    return {line.split()[1] for line in shown.splitlines()}


def reached(folder: Path, *revisions: str) -> set[str]:
    listed = git("rev-list", "--objects", "--no-object-names", *revisions, cwd=folder)
    return set(listed.stdout.split())


def test_a_pack_that_is_the_answer_is_named_not_copied(source: Path, tmp_path: Path) -> None:
    repository = StoredRepository(source, tmp_path / "data")
    answer = clone(repository)
    [stored] = (source / "objects/pack").glob("*.pack")
    [[path, start, end]] = answer["parts"]
    assert Path(path).read_bytes() == stored.read_bytes()
    assert (start, end) == (0, stored.stat().st_size)
    assert answer["is_sealed"]
    assert not answer["out_exists"]


def test_what_came_later_follows_the_whole_pack(source: Path, tmp_path: Path) -> None:
    add(source, "later", range(40, 45))
    git("tag", "-m", "t", "v1", "main", cwd=source)
    git("repack", "-dq", cwd=source)
    repository = StoredRepository(source, tmp_path / "data")
    answer = clone(repository, include_tag=True)
    assert [Path(path).name.startswith("answer") for path, _, _ in answer["parts"]] == [1, 0, 1]
    assert answer["oids"] == reached(source, "--all")
    later = bytes.fromhex(git("rev-parse", "later", cwd=source).stdout.strip())
    tag = git("rev-parse", "v1", cwd=source).stdout.strip()
    assert tag in clone(repository, wants=[later], include_tag=True)["oids"]
    assert clone(repository, wants=[later])["oids"] == reached(source, "--all") - {tag}


def test_a_pack_with_a_hidden_or_deleted_branch_is_not_sent_whole(
    source: Path, tmp_path: Path
) -> None:
    add(source, "secret", range(50, 52))
    git("repack", "-adq", cwd=source)
    secret = reached(source, "secret", "^main")
    assert len(secret) == 6
    repository = StoredRepository(source, tmp_path / "data", (b"refs/heads/secret",))
    assert not clone(repository)["oids"] & secret
    shown = StoredRepository(source, tmp_path / "shown")
    assert clone(shown)["oids"] >= secret
    git("branch", "-D", "secret", cwd=source)
    assert not clone(shown)["oids"] & secret


def test_a_client_that_wants_a_little_is_not_sent_everything(source: Path, tmp_path: Path) -> None:
    git("branch", "old", "main~25", cwd=source)
    repository = StoredRepository(source, tmp_path / "data")
    old, main = (git("rev-parse", name, cwd=source).stdout.strip() for name in ("old", "main"))
    assert clone(repository, wants=[bytes.fromhex(old)])["oids"] == reached(source, "old")
    near = git("rev-parse", "main~1", cwd=source).stdout.strip()
    assert clone(repository, wants=[bytes.fromhex(near)])["oids"] == reached(source, main)


def test_other_capabilities_are_no_reason_to_send_too_much(source: Path, tmp_path: Path) -> None:
    repository = StoredRepository(source, tmp_path / "data")
    assert clone(repository, ofs_delta=False)["oids"] == reached(source, "--all")
    # Two commits, two trees, and the files of the larger one.
    assert len(clone(repository, depth=1)["oids"]) == 2 + 2 + 30
    main = bytes.fromhex(git("rev-parse", "main", cwd=source).stdout.strip())
    had = bytes.fromhex(git("rev-parse", "main~1", cwd=source).stdout.strip())
    assert len(clone(repository, wants=[main], haves=(had,), thin_pack=False)["oids"]) == 3


def test_roots_are_kept_and_a_damaged_file_is_made_anew(source: Path, tmp_path: Path) -> None:
    git("tag", "-m", "t", "v1", "main", cwd=source)
    git("repack", "-adq", cwd=source)
    repository = StoredRepository(source, tmp_path / "data")

    def fresh() -> PackRoots:
        objects = PackSet.from_description(repository.description(), PackCache())
        return pack_roots(objects, objects.packs[0])

    tag = git("rev-parse", "v1", cwd=source).stdout.strip()
    assert fresh() == PackRoots(True, (), (bytes.fromhex(tag),))
    [path] = (tmp_path / "data").glob("groups/1/repositories/*/objects/info/*.roots")
    content = path.read_bytes()
    for damage in (b"", content[:-1], content[:30] + b"\0" + content[31:], content[:44]):
        path.write_bytes(damage)
        assert fresh() == PackRoots(True, (), (bytes.fromhex(tag),))
        assert path.read_bytes() == content


def test_a_pack_that_refers_to_another_is_not_closed(source: Path, tmp_path: Path) -> None:
    add(source, "later", range(40, 45))
    repository = StoredRepository(source, tmp_path / "data")
    objects = repository.objects()
    usable = [pack_roots(objects, pack).is_usable for pack in objects.packs]
    assert sorted(usable) == [False, True]


def test_reaches_all(source: Path, tmp_path: Path) -> None:
    reader = CommitReader(StoredRepository(source, tmp_path / "data").objects())
    line = [bytes.fromhex(oid) for oid in git("rev-list", "main", cwd=source).stdout.split()]
    assert reaches_all(reader, [line[0]], line)
    assert reaches_all(reader, line[:2], [])
    assert not reaches_all(reader, [line[5]], [line[4], line[9]])
    assert not reaches_all(reader, [], [line[3]])
