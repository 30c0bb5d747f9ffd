"""Who is calling, and may they: tokens, shared by every protocol of the edge.

Owns how a presented credential becomes an `Identity` and what an identity may do. Must not know
HTTP routes, gRPC services, repositories or Raft: a request with no or a wrong credential is refused
without touching the cluster (storage.md, "What git does on the wire").

The token alone decides who the caller is; the user name beside it in HTTP Basic is not looked at,
because git tools put words such as `x-access-token` there. Every user of this slice may do
everything (rpc/config.py).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal

from quorepo.storage.errors import PermissionDenied, Unauthenticated

__all__ = ["Action", "Authenticator", "Identity"]

Action = Literal["read", "write", "create", "delete", "admin"]

_NEXT_STEP = "pass a token as the password (HTTP Basic) or as a bearer token"
_HEADER_CHARACTERS_MAX = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller; `user` is what the audit trail records as actor."""

    user: str


class Authenticator:
    """Knows the tokens of this node's users. Holds digests only, compares in constant time."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """`tokens` maps a user name to a token (see `quorepo.rpc.config.load_tokens`)."""
        self._digests = [(_digest(token), Identity(user)) for user, token in tokens.items()]

    def authenticate(self, token: str) -> Identity:
        """The owner of a token.

        Raises:
            Unauthenticated: nobody has this token.
        """
        presented = _digest(token)
        found: Identity | None = None
        for expected, identity in self._digests:  # never stops early: time tells nothing
            if hmac.compare_digest(expected, presented):
                found = identity
        if found is None:
            raise Unauthenticated("unknown token", next_step=_NEXT_STEP)
        return found

    def authenticate_header(self, authorization: str | None) -> Identity:
        """The caller behind an `Authorization` header: `Basic` (password = token) or `Bearer`.

        The same value is what gRPC clients send as `authorization` metadata.

        Raises:
            Unauthenticated: no header, another scheme, not decodable, or an unknown token.
        """
        if not authorization:
            raise Unauthenticated("no credential", next_step=_NEXT_STEP)
        if len(authorization) > _HEADER_CHARACTERS_MAX:
            raise Unauthenticated("the authorization header is too long", next_step=_NEXT_STEP)
        scheme, _, value = authorization.strip().partition(" ")
        if scheme.lower() == "bearer":
            return self.authenticate(value.strip())
        if scheme.lower() == "basic":
            return self.authenticate(_basic_password(value.strip()))
        raise Unauthenticated(
            f"authorization scheme {scheme[:32]!r} is not supported", next_step=_NEXT_STEP
        )

    def authorize(self, identity: Identity, action: Action, path: str = "") -> None:
        """Checks that a caller may do `action` on the repository at `path`.

        Raises:
            PermissionDenied: it may not. Never in this slice, where every user may do everything.
        """
        if not identity.user:
            raise PermissionDenied(f"anonymous callers may not {action} {path!r}")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _basic_password(encoded: str) -> str:
    try:
        decoded = base64.b64decode(encoded, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Unauthenticated("the basic credential is not decodable") from error
    _user, separator, password = decoded.partition(":")
    if not separator:
        raise Unauthenticated("the basic credential has no password", next_step=_NEXT_STEP)
    return password
