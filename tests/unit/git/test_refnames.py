"""`check_ref_name` says what `git check-ref-format` says."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.git import ENVIRONMENT

from quorepo.storage.git.refnames import check_ref_name

# Pieces that the rules are about, far more likely here than in random bytes.
RULES = b"a / / . .. .lock lock @ { @{ * \\ ~ ^ : ? [ ] - heads HEAD \x7f \x01 \xff \xc3\xa9"
PIECES = st.sampled_from([*RULES.split(b" "), b" "])
NAMES = st.lists(PIECES, min_size=1, max_size=8).map(b"".join)


def git_accepts(names: list[bytes]) -> list[bool]:
    """One shell for all names: starting it costs more than checking."""
    script = 'for name; do git check-ref-format "$name" && echo y || echo n; done'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *names], env=ENVIRONMENT, capture_output=True, check=True
    )
    return [line == "y" for line in done.stdout.decode().split()]


@given(names=st.lists(NAMES, min_size=10, max_size=40))
@example(names=[b"heads/main", b"heads/@", b"@", b"heads/a.lock/b", b"heads/a.", b"heads/.a", b"x"])
@settings(max_examples=15, deadline=None)
def test_same_verdict_as_git(names: list[bytes]) -> None:
    full = [b"refs/" + name for name in names]
    expected = [
        # receive-pack checks what follows `refs/`, and one level is not enough there.
        accepted and b"/" in name
        for name, accepted in zip(names, git_accepts(full), strict=True)
    ]
    assert [check_ref_name(name) is None for name in full] == expected


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (b"main", "refs/"),
        (b"HEAD", "refs/"),
        (b"refs/main", "two levels"),
        (b"refs/heads/a\0b", "forbidden"),
        (b"refs/heads/a\nb", "forbidden"),
        (b"refs/heads/", "empty"),
        (b"refs//heads", "empty"),
        (b"refs/heads/a.lock", ".lock"),
        (b"refs/heads/.hidden", "starts with '.'"),
        (b"refs/heads/a..b", "'..'"),
        (b"refs/heads/a.", "ends with '.'"),
        (b"refs/heads/a@{1}", "'@{'"),
        (b"", "refs/"),
    ],
)
def test_refusal_names_the_rule(name: bytes, word: str) -> None:
    reason = check_ref_name(name)
    assert reason is not None
    assert word in reason
