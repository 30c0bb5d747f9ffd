"""Checks of .gitmodules and .gitattributes blobs, with git's message ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packing import git_bytes

from quorepo.storage.fsck_blobs import (
    ConfigSyntaxError,
    gitattributes_problems,
    gitmodules_problems,
    parse_config,
)


def ids(content: bytes) -> list[str]:
    return [message_id for message_id, _ in gitmodules_problems(content)]


def module(name: bytes = b"a", **values: bytes) -> bytes:
    lines = [b'[submodule "%s"]' % name]
    lines += [b"\t%s = %s" % (key.encode(), value) for key, value in values.items()]
    return b"\n".join(lines) + b"\n"


@pytest.mark.parametrize(
    "url",
    [
        b"https://example.com/a.git",
        b"git@example.com:a.git",
        b"../sibling.git",
        b"./a",
        b"/srv/git/a",
        b"git://example.com/a",
        b"https://user@example.com:8080/a",
        b"ssh://-x/a",
    ],
)
def test_a_plain_submodule_is_fine(url: bytes) -> None:
    assert ids(module(b"lib/a", path=b"lib/a", url=url, update=b"rebase", branch=b"main")) == []


@pytest.mark.parametrize(
    "url",
    [
        b"-u./payload",
        b"git://example.com/a%0ahost=evil",
        b"../%0a",
        b"..//example.com",
        b"../../:evil",
        b"./../:example.com",
        b"https://example.com/a%0ahost=evil",
        b"https::example.com/a",
        b"https:///a",
        b"http::https://",
        b"https://user@/a",
        b'"https://example.com/a\\nhost=evil"',
    ],
)
def test_a_dangerous_url_is_found(url: bytes) -> None:
    assert ids(module(url=url)) == ["gitmodulesUrl"]


@pytest.mark.parametrize("name", [b"..", b"../a", b"a/../b", b"a\\\\..", b"a/..", b""])
def test_a_name_that_leaves_the_folder_is_found(name: bytes) -> None:
    assert ids(module(name, path=b"x")) == ["gitmodulesName"]


def test_options_and_commands_are_found() -> None:
    assert ids(module(path=b"-x")) == ["gitmodulesPath"]
    assert ids(module(update=b"!rm -rf /")) == ["gitmodulesUpdate"]


def test_what_stands_before_a_syntax_error_counts() -> None:
    assert ids(module(path=b"-x") + b"[broken") == ["gitmodulesPath", "gitmodulesParse"]


def test_disguises_do_not_help() -> None:
    assert ids(b'\xef\xbb\xbf[SubModule "a"] URL = "-x"\r\n') == ["gitmodulesUrl"]
    assert ids(b'[submodule "a"]\n url = "-\\\nx" # comment') == ["gitmodulesUrl"]
    assert ids(b"[submodule.a]\n url = -x") == ["gitmodulesUrl"]
    assert ids(b'[submodule "\\.\\."]\n url = x') == ["gitmodulesName"]
    assert ids(b'[submodule "a"]\n url = ./%0a\0harmless') == ["gitmodulesUrl"]


def test_sizes_are_limited() -> None:
    assert ids(b"#" * (1 << 20) + b"\n") == ["gitmodulesLarge"]
    assert [i for i, _ in gitattributes_problems(b"* text\n")] == []
    assert [i for i, _ in gitattributes_problems(b"a" * 2048)] == ["gitattributesLineLength"]


PIECES = [b"[a]", b'[a "b"]', b"[a.b]", b"key", b" = ", b"=", b"value", b'"', b"\\", b"\n", b"\\n"]
PIECES += [b"#", b";", b" ", b"\t", b"\r\n", b"x1-", b"]", b"[", b".", b"\\\n", b"\xef\xbb\xbf"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
def test_configuration_is_read_as_git_reads_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "config-under-test"
    file.write_bytes(content)
    theirs = git_config_list(file)
    try:
        ours = list(parse_config(content))
    except ConfigSyntaxError:
        assert theirs is None
    else:
        assert theirs == ours


def git_config_list(file: Path) -> list[tuple[bytes, bytes | None]] | None:
    """What `git config` makes of a file; None when it refuses it."""
    listed = git_bytes(
        "config", "--file", str(file), "--null", "--list", cwd=file.parent, check=False
    )
    if b"bad config" in listed:
        return None
    pairs: list[tuple[bytes, bytes | None]] = []
    for item in listed.split(b"\0")[:-1]:
        key, newline, value = item.partition(b"\n")
        pairs.append((key, value if newline else None))
    return pairs
