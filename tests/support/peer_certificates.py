"""Certificates for tests of the peer port: a CA made once per process, and credentials of nodes."""

from __future__ import annotations

import datetime
import functools

from cryptography import x509

from quorepo.cluster.peer.certificates import (
    Credentials,
    Issued,
    issue_certificate,
    make_authority,
)

__all__ = ["authority", "credentials_of", "now"]


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@functools.cache
def authority(cluster: str = "") -> Issued:
    """The CA of a cluster, by a name that only the tests know."""
    return make_authority(now())


@functools.cache
def credentials_of(
    node: str, *, signed_by: str = "", trusts: str = "", valid_days: float = 30
) -> Credentials:
    """A node's credentials, unchecked: as a peer that is wrong about something may have them."""
    lifetime = datetime.timedelta(days=valid_days)
    issued = issue_certificate(authority(signed_by), node, now(), lifetime)
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    return Credentials(
        node=node,
        ca_pem=authority(trusts).certificate_pem,
        certificate_pem=issued.certificate_pem,
        key_pem=issued.key_pem,
        expires_at=certificate.not_valid_after_utc,
    )
