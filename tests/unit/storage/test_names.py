"""Repository paths: what is normalized, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorepo.storage.errors import InvalidArgument
from quorepo.storage.names import COMPONENT_BYTES_MAX, PATH_BYTES_MAX, normalize_path


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("app", "app"),
        ("/team/app.git", "team/app"),
        ("team/app.git/", "team/app"),
        ("//team/app//", "team/app"),
        ("a.b/c-d_e", "a.b/c-d_e"),
        ("Grüße/日本", "Grüße/日本"),
        ("gitolite", "gitolite"),
        ("a" * COMPONENT_BYTES_MAX, "a" * COMPONENT_BYTES_MAX),
    ],
)
def test_a_path_has_one_normal_form(path: str, normal: str) -> None:
    assert normalize_path(path) == normal


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        ".git",
        "/.git",
        "..",
        "a/../b",
        "a/./b",
        "a//b",
        ".hidden",
        "a/.hidden/b",
        "a/.git",
        "a.git/b",
        "a.git.git",
        "a.lock",
        "a.lock/b",
        "a\\b",
        "a\nb",
        "a\x00b",
        "a\x7fb",
        "a\x85b",
        "a\u2028b",
        "a\udcffb",
        "a" * (COMPONENT_BYTES_MAX + 1),
        "ü" * (COMPONENT_BYTES_MAX // 2 + 1),
        "/".join(["a" * 200] * 6),
    ],
)
def test_a_dangerous_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument):
        normalize_path(path)


@given(st.text() | st.text(alphabet="ab./\\-git"))
def test_a_normal_path_is_safe_and_stays_as_it_is(path: str) -> None:
    try:
        normal = normalize_path(path)
    except InvalidArgument:
        return
    assert normalize_path(normal) == normal
    assert normalize_path(f"/{normal}.git/") == normal
    assert len(normal.encode()) <= PATH_BYTES_MAX
    for component in normal.split("/"):
        assert component
        assert not component.startswith(".")
        assert not component.endswith((".git", ".lock"))
        assert "\\" not in component
        assert all(ord(character) >= 0x20 for character in component)
