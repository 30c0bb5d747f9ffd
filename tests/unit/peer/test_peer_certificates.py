"""Certificates of nodes: what is made can be used, and each mistake in a file is named."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.peer_certificates import authority, now

from quorepo.cluster.peer.certificates import (
    Credentials,
    Issued,
    issue_certificate,
    load_credentials,
    make_authority,
    node_dns_name,
    node_of_names,
)
from quorepo.storage.errors import ConfigError

DAY = datetime.timedelta(days=1)


class Files:
    """The three files of node n1."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.pem"
        self.certificate = folder / "n1.pem"
        self.key = folder / "n1.key"
        self.ca.write_bytes(authority().certificate_pem)
        self.put(issue_certificate(authority(), "n1", now()))

    def put(self, issued: Issued) -> None:
        self.certificate.write_bytes(issued.certificate_pem)
        self.key.write_bytes(issued.key_pem)
        self.key.chmod(0o600)

    def load(self, at: datetime.datetime | None = None) -> Credentials:
        return load_credentials("n1", self.ca, self.certificate, self.key, at or now())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_what_was_issued_is_loaded(files: Files) -> None:
    credentials = files.load()
    assert credentials.node == "n1"
    assert credentials.expires_at - now() > 390 * DAY
    assert credentials.key_pem == files.key.read_bytes()
    assert b"PRIVATE" not in repr(credentials).encode()
    assert b"PRIVATE" not in repr(authority()).encode()


def test_clock_may_be_an_hour_off(files: Files) -> None:
    assert files.load(now() - datetime.timedelta(hours=1))


def test_certificate_never_outlives_its_authority(files: Files) -> None:
    files.put(issue_certificate(authority(), "n1", now(), 100_000 * DAY))
    assert files.load().expires_at == certificate_of(files.ca).not_valid_after_utc


def test_two_authorities_while_one_is_replaced(files: Files) -> None:
    files.ca.write_bytes(authority("next").certificate_pem + authority().certificate_pem)
    assert files.load().ca_pem.count(b"BEGIN CERTIFICATE") == 2
    files.put(issue_certificate(authority("next"), "n1", now()))
    assert files.load()


def certificate_of(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def with_names(*names: x509.GeneralName, uses: list[x509.ObjectIdentifier] | None = None) -> Issued:
    """What another tool than ours may have issued."""
    issuer = x509.load_pem_x509_certificate(authority().certificate_pem)
    issuer_key = serialization.load_pem_private_key(authority().key_pem, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder(issuer.subject, x509.Name([]), key.public_key(), 77)
        .not_valid_before(now() - DAY)
        .not_valid_after(now() + DAY)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if uses:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    pem = serialization.Encoding.PEM
    return Issued(
        builder.sign(issuer_key, hashes.SHA256()).public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def test_certificates_of_other_tools_are_taken(files: Files) -> None:
    files.put(with_names(x509.DNSName("n1.node.quorepo"), x509.DNSName("git.example")))
    assert files.load()


N1 = x509.DNSName("n1.node.quorepo")
MISTAKES: list[tuple[str, Callable[[Files], object], str]] = [
    ("no CA", lambda f: f.ca.unlink(), r"cannot read cluster\.tls\.ca_file .*No such file"),
    ("no certificate", lambda f: f.certificate.unlink(), r"cannot read cluster\.tls\.certificate"),
    ("no key", lambda f: f.key.unlink(), r"cannot read cluster\.tls\.key_file"),
    ("empty", lambda f: f.certificate.write_bytes(b""), "holds no certificate in PEM"),
    ("key for certificate", lambda f: f.certificate.write_bytes(f.key.read_bytes()), "holds no"),
    ("certificate for key", lambda f: f.key.write_bytes(f.ca.read_bytes()), "holds no private key"),
    ("open key", lambda f: f.key.chmod(0o640), r"open to other users \(mode 0640\); chmod 600"),
    (
        "another node",
        lambda f: f.put(issue_certificate(authority(), "n2", now())),
        r"has n2\.node\.quorepo, but node\.name 'n1' needs exactly 'n1\.node\.quorepo'",
    ),
    ("no name", lambda f: f.put(with_names()), "has no DNS name"),
    ("two nodes", lambda f: f.put(with_names(N1, x509.DNSName("n2.node.quorepo"))), "exactly"),
    ("wildcard", lambda f: f.put(with_names(x509.DNSName("*.node.quorepo"))), "exactly"),
    ("URI", lambda f: f.put(with_names(x509.UniformResourceIdentifier(N1.value))), "exactly"),
    (
        "server only",
        lambda f: f.put(with_names(N1, uses=[ExtendedKeyUsageOID.SERVER_AUTH])),
        "both serverAuth and clientAuth",
    ),
    (
        "another CA",
        lambda f: f.put(issue_certificate(authority("other"), "n1", now())),
        r"was not signed by a CA in cluster\.tls\.ca_file .* of one CA",
    ),
    (
        "its own CA",
        lambda f: f.ca.write_bytes(f.certificate.read_bytes()),
        "was not signed by a CA",
    ),
    (
        "key of another certificate",
        lambda f: f.key.write_bytes(issue_certificate(authority(), "n1", now()).key_pem),
        "is not the key of",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_each_mistake_is_named(files: Files, spoil: Callable[[Files], object], words: str) -> None:
    spoil(files)
    with pytest.raises(ConfigError, match=words):
        files.load()


def test_encrypted_key_is_named(files: Files) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(ConfigError, match="is encrypted"):
        files.load()


def test_dates_are_checked(files: Files) -> None:
    expires_at = files.load().expires_at
    with pytest.raises(ConfigError, match=r"certificate_file .* expired at \d{4}-"):
        files.load(expires_at)
    with pytest.raises(ConfigError, match=r"certificate_file .* is valid from .* clock says 2020-"):
        files.load(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    old = make_authority(now() - 3651 * DAY)
    files.ca.write_bytes(old.certificate_pem)
    files.put(issue_certificate(old, "n1", now() - 3651 * DAY, 3640 * DAY))
    with pytest.raises(ConfigError, match="expired at"):
        files.load()


def test_a_foreign_key_does_not_issue() -> None:
    key = issue_certificate(authority(), "n1", now()).key_pem
    issued = issue_certificate(Issued(authority().certificate_pem, key), "n2", now())
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    ca = x509.load_pem_x509_certificate(authority().certificate_pem)
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(ca)
    with pytest.raises(ValueError, match="PEM"):
        issue_certificate(Issued(authority().certificate_pem, b"garbage"), "n2", now())


@pytest.mark.parametrize("node", ["n1", "a", "x" * 32, "eu-west-1"])
def test_a_node_is_found_again_in_its_name(node: str) -> None:
    assert node_of_names([node_dns_name(node)]) == node
    assert node_of_names(["localhost", node_dns_name(node)]) == node


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["n1"],
        [".node.quorepo"],
        ["n1.node.quorepo.example"],
        ["n1.other.node.quorepo"],
        ["n1.node.quorepo", "n2.node.quorepo"],
    ],
)
def test_other_names_are_of_no_node(names: list[str]) -> None:
    assert node_of_names(names) is None
