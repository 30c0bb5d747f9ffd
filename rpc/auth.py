"""Who is calling, and may they: tokens, shared by every protocol of the edge.

Owns how a presented credential becomes an `Identity` and what an identity may do. Must not know
HTTP routes, gRPC services, repositories or Raft: a request with no or a wrong credential is refused
without touching the cluster (storage.md, "What git does on the wire").

The token alone decides who the caller is; the user name beside it in HTTP Basic is not looked at,
because git tools put words such as `x-access-token` there. A token has one of three roles; each
may do what the one before it may.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal, get_args

from quorepo.storage.errors import PermissionDenied, Unauthenticated

__all__ = ["ROLES", "Action", "Authenticator", "Identity", "Role", "TokenDigest"]

Action = Literal["read", "write", "create", "delete", "admin"]
Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

_MAY: dict[Role, frozenset[Action]] = {
    "read": frozenset({"read"}),
    "write": frozenset({"read", "write", "create"}),
    "admin": frozenset(get_args(Action)),
}

_NEXT_STEP = "pass a token as the password (HTTP Basic) or as a bearer token"
_HEADER_CHARACTERS_MAX = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller; `user` is what the audit trail records as actor."""

    user: str
    role: Role = "admin"


@dataclasses.dataclass(frozen=True, slots=True)
class TokenDigest:
    """What is kept of a token: enough to recognise it. Tokens are random, so SHA-256 will do."""

    sha256: bytes
    role: Role

    @classmethod
    def of(cls, token: str, role: Role = "admin") -> TokenDigest:
        """The digest of a token."""
        return cls(_digest(token), role)


class Authenticator:
    """Knows the tokens of this node's users. Holds digests only, compares in constant time."""

    def __init__(self, tokens: Mapping[str, str | TokenDigest]) -> None:
        """`tokens` maps a user name to a token, an admin's, or to a digest and a role (see
        `quorepo.rpc.config.load_tokens`)."""
        self._digests = []
        for user, given in tokens.items():
            token = given if isinstance(given, TokenDigest) else TokenDigest.of(given)
            self._digests.append((token.sha256, Identity(user, token.role)))

    def derived_key(self, purpose: bytes) -> bytes:
        """A secret of 32 bytes for `purpose` that all nodes with the same users have."""
        digests = b"".join(sorted(digest for digest, _identity in self._digests))
        return hmac.new(digests, b"quorepo " + purpose, hashlib.sha256).digest()

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
            PermissionDenied: it may not.
        """
        if not identity.user:
            raise PermissionDenied(f"anonymous callers may not {action} {path!r}")
        if action not in _MAY[identity.role]:
            needed = next(role for role in ROLES if action in _MAY[role])
            what = f"{action} {path!r}" if path else f"do this ({action})"
            raise PermissionDenied(
                f"user {identity.user!r} has the role {identity.role!r} and may not {what}",
                next_step=f"use a token with the role {needed!r}",
            )


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
