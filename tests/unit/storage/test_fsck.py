"""The strict checks against git's own: `git index-pack --fsck-objects` must say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packing import (
    IDENT,
    PackWriter,
    commit,
    fsck_message_of_git,
    git_bytes,
    object_id,
    tag,
    tree,
)

from quorepo.storage.errors import CorruptPack, InvalidArgument
from quorepo.storage.fsck import Fsck
from quorepo.storage.fsck_policy import FsckPolicy
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import BLOB, COMMIT, TAG, TREE

OID = bytes(range(1, 21))
OTHER = bytes(range(2, 22))


@pytest.fixture(scope="module")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty")
    git_bytes("init", "--bare", "--quiet", cwd=path)
    return path


def our_message(type_num: int, content: bytes, policy: FsckPolicy | None = None) -> str | None:
    fsck = Fsck(policy or FsckPolicy(), ObjectFormat.SHA1, lambda oid, type_num: None)
    check = {COMMIT: fsck.commit, TREE: fsck.tree, TAG: fsck.tag}[type_num]
    oid = object_id(type_num, content)
    try:
        check(oid, content)
    except CorruptPack as error:
        message_id = error.metadata["message_id"]
        prefix = f"fsck error: {oid.hex()}: {message_id}: "
        return message_id if error.message.startswith(prefix) else error.message
    return None


def git_message(repository: Path, type_num: int, content: bytes) -> tuple[bool, str | None]:
    """Whether git takes the object, and the id of its first complaint."""
    pack = PackWriter()
    pack.whole(type_num, content)
    said = git_bytes(
        "index-pack", "--fsck-objects", "--stdin", cwd=repository, stdin=pack.finish(), check=False
    )
    return said.startswith(b"pack\t"), fsck_message_of_git(said)


COMMITS = {
    "plain": commit(OID),
    "merge": commit(OID, [OTHER, bytes(range(3, 23))]),
    "no body": commit(OID)[: -len(b"\nmessage\n")],
    "empty name": commit(OID, author=b" <a@b> 1 +0000"),
    "empty email": commit(OID, author=b"A <> 1 +0000"),
    "epoch": commit(OID, author=b"A <a@b> 0 +0000"),
    "signed": commit(OID).replace(b"\n\n", b"\ngpgsig -----BEGIN\n -----END\n\n", 1),
    "encoding": commit(OID).replace(b"\n\n", b"\nencoding ISO-8859-1\n\n", 1),
    "nul in body": commit(OID, message=b"a\0b\n"),
    "nul in header": commit(OID, author=b"A\0B <a@b> 1 +0000"),
    "unterminated": commit(OID).split(b"\n\n")[0],
    "empty": b"",
    "no tree": b"parent %s\n" % OID.hex().encode(),
    "short tree": commit(OID).replace(OID.hex().encode(), b"abcd"),
    "short parent": commit(OID, [OTHER]).replace(OTHER.hex().encode(), b"abcd"),
    "no author": commit(OID).replace(b"author " + IDENT + b"\n", b""),
    "two authors": commit(OID, author=IDENT + b"\nauthor " + IDENT),
    "no committer": commit(OID).replace(b"\ncommitter " + IDENT, b""),
    "name before email": commit(OID, author=b"<a@b> 1 +0000"),
    "bad name": commit(OID, author=b"A > B <a@b> 1 +0000"),
    "no email": commit(OID, author=b"A 1 +0000"),
    "no space before email": commit(OID, author=b"A<a@b> 1 +0000"),
    "bad email": commit(OID, author=b"A <a<b> 1 +0000"),
    "open email": commit(OID, author=b"A <a@b 1 +0000"),
    "no space before date": commit(OID, author=b"A <a@b>1 +0000"),
    "padded date": commit(OID, author=b"A <a@b> 01 +0000"),
    "huge date": commit(OID, author=b"A <a@b> 18446744073709551615 +0000"),
    "overlong date": commit(OID, author=b"A <a@b> 99999999999999999999999 +0000"),
    "no date": commit(OID, author=b"A <a@b> x +0000"),
    "date without zone": commit(OID, author=b"A <a@b> 1"),
    "bad zone": commit(OID, author=b"A <a@b> 1 +000"),
    "long zone": commit(OID, author=b"A <a@b> 1 +00000"),
    "bad committer": commit(OID, committer=b"A <a@b> 1 0000"),
}

TREES = {
    "empty": b"",
    "plain": tree(("100644", b"a", OID), ("40000", b"b", OID), ("160000", b"c", OID)),
    "all modes": tree(
        ("100755", b"a", OID), ("120000", b"b", OID), ("100664", b"c", OID), ("100644", b"d", OID)
    ),
    "folder sorts as with a slash": tree(
        ("100644", b"a", OID), ("100644", b"b-", OID), ("40000", b"b", OID), ("100644", b"b0", OID)
    ),
    "not sorted": tree(("100644", b"b", OID), ("100644", b"a", OID)),
    "folder sorted as a file": tree(("40000", b"b", OID), ("100644", b"b-", OID)),
    "duplicate": tree(("100644", b"a", OID), ("100644", b"a", OTHER)),
    "file and folder": tree(("100644", b"a", OID), ("100644", b"a-", OID), ("40000", b"a", OID)),
    "dot": tree(("40000", b".", OID)),
    "dotdot": tree(("40000", b"..", OID)),
    "dotgit": tree(("40000", b".git", OID)),
    "dotgit in capitals": tree(("40000", b".GiT", OID)),
    "dotgit for NTFS": tree(("40000", b"git~1", OID)),
    "dotgit with dots": tree(("40000", b".git. . ", OID)),
    "dotgit stream": tree(("40000", b".git::$INDEX_ALLOCATION", OID)),
    "dotgit for HFS+": tree(("40000", ".g\u200cit".encode(), OID)),
    "dotgit behind a backslash": tree(("100644", b"a\\.git", OID)),
    "dotgit and not UTF-8": tree(("40000", b".git\xff", OID)),
    "nearly dotgit": tree(("40000", b".gitx", OID), ("40000", b"git", OID)),
    "path": tree(("100644", b"a/b", OID)),
    "null id": tree(("100644", b"a", bytes(20))),
    "padded mode": tree(("0100644", b"a", OID)),
    "padded folder": tree(("040000", b"a", OID)),
    "empty name": b"100644 \0" + OID,
    "cut": tree(("100644", b"a", OID))[:-1],
    "no NUL": b"100644 a" + b"x" * 30,
    "bad octal": tree(("100648", b"a", OID)),
    "no mode": b" a\0" + OID,
    "symlinked .gitmodules": tree(("120000", b".gitmodules", OID)),
    "symlinked .gitmodules for NTFS": tree(("120000", b"GITMOD~1", OID)),
    "symlinked .gitmodules by hash": tree(("120000", b"gi7eba~1", OID)),
    "symlinked .gitmodules for HFS+": tree(("120000", ".gitmod\u200cules".encode(), OID)),
    "symlinked .gitattributes": tree(("120000", b".gitattributes", OID)),
    "symlinked .gitignore": tree(("120000", b".gitignore", OID)),
    "symlinked .mailmap": tree(("120000", b".mailmap", OID)),
}

TAGS = {
    "plain": tag(OID),
    "of a tree": tag(OID, b"tree"),
    "of a tag": tag(OID, b"tag"),
    "without tagger": tag(OID).replace(b"tagger " + IDENT + b"\n", b""),
    "odd name": tag(OID, name=b"a..b"),
    "no object": tag(OID).replace(b"object", b"abject"),
    "bad object": tag(OID).replace(OID.hex().encode(), b"zz"),
    "no type": tag(OID).replace(b"type ", b"kind "),
    "bad type": tag(OID, b"branch"),
    "nothing after object": b"object %s\n" % OID.hex().encode(),
    "no tag": tag(OID).replace(b"tag v1", b"gat v1"),
    "bad tagger": tag(OID).replace(IDENT, b"nobody"),
    "nul in header": tag(OID, name=b"v\x001"),
    "unterminated": tag(OID).split(b"\n\n")[0],
}

# We refuse what git lets through, on purpose.
STRICTER = {"date whitespace": commit(OID, author=b"A <a@b>  1 +0000")}

CASES = [
    pytest.param(type_num, content, id=f"{kind}: {name}")
    for kind, type_num, cases in (
        ("commit", COMMIT, COMMITS),
        ("tree", TREE, TREES),
        ("tag", TAG, TAGS),
    )
    for name, content in cases.items()
]


@pytest.mark.parametrize(("type_num", "content"), CASES)
def test_the_verdict_is_gits(type_num: int, content: bytes, empty_repository: Path) -> None:
    accepted, message = git_message(empty_repository, type_num, content)
    ours = our_message(type_num, content)
    if accepted:
        assert ours is None
    elif message is None:
        assert ours is not None  # git's parser gave up before its fsck could say a word
    else:
        assert ours == message


VALID = [(COMMIT, content) for content in (COMMITS["merge"], COMMITS["signed"])]
VALID += [(TREE, content) for content in (TREES["plain"], TREES["all modes"])]
VALID += [(TAG, content) for content in (TAGS["plain"],)]
PIECES = [b"\n", b" ", b"\0", b"<", b">", b"0", b"7", b"-", b".git", b"author ", b"a", b"\xff", b""]


@settings(
    max_examples=40,
    deadline=None,
)
@given(
    valid=st.sampled_from(VALID),
    position=st.floats(0, 1),
    removed=st.integers(0, 25),
    inserted=st.lists(st.sampled_from(PIECES), max_size=2).map(b"".join),
)
def test_a_damaged_object_gets_gits_verdict(
    empty_repository: Path,
    valid: tuple[int, bytes],
    position: float,
    removed: int,
    inserted: bytes,
) -> None:
    type_num, content = valid
    start = int(position * len(content))
    damaged = content[:start] + inserted + content[start + removed :]
    accepted, message = git_message(empty_repository, type_num, damaged)
    ours = our_message(type_num, damaged)
    if accepted:
        # Modes that are neither file nor folder, and space before a date, are refused here only.
        assert ours in (None, "badTree", "badDate", message)
    else:
        assert ours is not None
        if message is not None and type_num != TREE:  # of several faults of a tree, either first
            assert ours == message


@pytest.mark.parametrize("content", STRICTER.values(), ids=STRICTER.keys())
def test_what_newer_git_refuses_is_refused(content: bytes) -> None:
    assert our_message(COMMIT, content) == "badDate"


def test_a_mode_of_no_known_type_is_refused() -> None:
    # git takes it for a gitlink, other readers for a blob: a reference that only some follow.
    assert our_message(TREE, tree(("10000", b"a", OID))) == "badTree"


def test_everything_an_object_refers_to_is_reported_with_its_type() -> None:
    seen: set[tuple[bytes, int]] = set()
    fsck = Fsck(FsckPolicy(), ObjectFormat.SHA1, lambda oid, type_num: seen.add((oid, type_num)))
    oids = [bytes([number]) * 20 for number in range(1, 9)]
    fsck.commit(OID, commit(oids[0], oids[1:3]))
    fsck.tree(
        OID,
        tree(
            ("100644", b"a", oids[3]),
            ("40000", b"b", oids[4]),
            ("160000", b"c", OTHER),
            ("120000", b"d", oids[5]),
        ),
    )
    fsck.tree(OID, tree(("100664", b"old", oids[6])))
    fsck.tag(OID, tag(oids[7], b"tag"))
    types = [TREE, COMMIT, COMMIT, BLOB, TREE, BLOB, BLOB, TAG]
    assert seen == set(zip(oids, types, strict=True))


def test_a_trusted_tree_vouches_for_its_entries_only() -> None:
    seen: list[bytes] = []
    fsck = Fsck(FsckPolicy(), ObjectFormat.SHA1, lambda oid, _: seen.append(oid))
    fsck.trust_tree(tree(("100644", b"a", OID), ("40000", b"b", OID)))
    fsck.tree(OTHER, tree(("100644", b"a", OID), ("100644", b"b", OTHER)))
    assert seen == [OTHER]


def test_a_trusted_tree_cannot_smuggle_an_entry_inside_a_name() -> None:
    # "100664" is not canonical; a search for entries would find "40000 x" within the name.
    seen: list[tuple[bytes, int]] = []
    fsck = Fsck(FsckPolicy(), ObjectFormat.SHA1, lambda oid, kind: seen.append((oid, kind)))
    fsck.trust_tree(tree(("100664", b"40000 x", OID)))
    fsck.tree(OTHER, tree(("40000", b"x", OID)))
    assert seen == [(OID, TREE)]


def test_a_policy_relaxes_one_message() -> None:
    padded = tree(("0100644", b"a", OID))
    assert our_message(TREE, padded, FsckPolicy({"ZeroPaddedFileMode": "ignore"})) is None
    both = tree(("0100644", b"..", OID))
    assert our_message(TREE, both, FsckPolicy({"zeroPaddedFilemode": "warn"})) == "hasDotdot"


def test_a_policy_can_be_stricter_than_git() -> None:
    old = tree(("100664", b"a", OID))
    assert our_message(TREE, old) is None
    assert our_message(TREE, old, FsckPolicy({"badFilemode": "error"})) == "badFilemode"


@pytest.mark.parametrize("overrides", [{"noSuchId": "warn"}, {"hasDot": "no"}, {"badTree": "warn"}])
def test_a_wrong_policy_is_refused(overrides: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        FsckPolicy(overrides)


def test_warnings_are_kept_for_the_client() -> None:
    fsck = Fsck(FsckPolicy(), ObjectFormat.SHA1, lambda oid, type_num: None)
    fsck.tree(OID, tree(("100664", b"a", OID)))
    assert fsck.warnings == [f"object {OID.hex()}: badFilemode: contains bad file modes"]
