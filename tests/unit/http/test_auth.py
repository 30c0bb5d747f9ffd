"""Credentials become identities, and nothing else does."""

from __future__ import annotations

import base64

import pytest

from quorepo.rpc.auth import Authenticator
from quorepo.storage.errors import Unauthenticated

AUTHENTICATOR = Authenticator({"alice": "token-of-alice", "bob": "token-of-bob"})


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "user"),
    [
        (basic("alice:token-of-alice"), "alice"),
        (basic("x-access-token:token-of-bob"), "bob"),
        (basic(":token-of-bob"), "bob"),
        ("Bearer token-of-alice", "alice"),
        ("bearer  token-of-alice ", "alice"),
    ],
)
def test_the_token_decides_who_it_is(header: str, user: str) -> None:
    assert AUTHENTICATOR.authenticate_header(header).user == user


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"\xff\xfe").decode(),
        basic("token-of-alice"),
        basic("alice:"),
        basic("alice:token-of-alice2"),
        "Bearer",
        "Bearer token",
        "Bearer tok\udc80en",
        "Negotiate abc",
        "Bearer " + "x" * 5000,
    ],
)
def test_anything_else_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        AUTHENTICATOR.authenticate_header(header)
    assert "token-of" not in str(caught.value)
