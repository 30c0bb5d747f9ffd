"""The configuration of one node: one TOML file, one frozen, cross-validated model.

Owns the names, defaults and rules of the file. Must not know how the parts that are configured
work; their own limits live beside them (`quorepo.storage.limits`,
`quorepo.cluster.raft.interface`).
"""

from __future__ import annotations

import datetime
import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from quorepo.cluster.peer.certificates import Credentials, load_credentials
from quorepo.cluster.raft.interface import RaftConfig
from quorepo.rpc.git_settings import GitSection
from quorepo.rpc.storage_config import StorageSection
from quorepo.storage.errors import ConfigError
from quorepo.storage.limits import StorageLimits

__all__ = [
    "AdvertiseSection",
    "AuthSection",
    "ClusterSection",
    "ListenSection",
    "NodeConfig",
    "NodeSection",
    "PushSection",
    "StorageSection",
    "TlsSection",
    "WorkersSection",
    "load_config",
    "load_peer_credentials",
    "load_tokens",
    "split_address",
]

_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN_CHARACTERS_MIN = 20
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - what a listener may be told


def split_address(address: str) -> tuple[str, int]:
    """Splits `HOST:PORT` or `[V6]:PORT`.

    Returns:
        The host without brackets and the port.

    Raises:
        ValueError: no port, or a port outside 1..65535.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host:
        raise ValueError(f"expected HOST:PORT, got {address!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address needs brackets, as in [::1]:7420; got {address!r}")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"port must be 1 to 65535, got {address!r}")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_address(address: str) -> str:
    split_address(address)
    return address


def _check_loopback_address(address: str) -> str:
    host, _port = split_address(address)
    if not _is_loopback(host):
        raise ValueError(
            f"{address!r} is not a loopback address, and without TLS nothing else is served; "
            "use 127.0.0.1 or [::1]"
        )
    return address


def _check_reachable_address(address: str) -> str:
    host, _port = split_address(address)
    if host in _WILDCARDS:
        raise ValueError(f"{address!r} is every address of a machine; name the one to connect to")
    return address


def _check_node_name(name: str) -> str:
    if not _NODE_NAME.fullmatch(name):
        raise ValueError(
            f"node name {name!r} must be 1 to 32 of a-z, 0-9 and '-', with no '-' at either end"
        )
    return name


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """Relative paths are relative to the file that holds them, not to where the process started."""
    base = (info.context or {}).get("base", Path.cwd())
    return Path(base / path.expanduser()).resolve()


Address = Annotated[str, AfterValidator(_check_address)]
ReachableAddress = Annotated[str, AfterValidator(_check_reachable_address)]
LoopbackAddress = Annotated[str, AfterValidator(_check_loopback_address)]
NodeName = Annotated[str, AfterValidator(_check_node_name)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSection(_Section):
    """Who this node is."""

    name: NodeName = Field(description="Name of this node, unique in its cluster, never changed.")
    data_dir: AbsolutePath = Field(description="Directory that holds everything this node stores.")
    pid_file: AbsolutePath | None = Field(
        None, description="File that names the node's supervisor while it runs; outside data_dir."
    )


class TlsSection(_Section):
    """How this node proves to the others who it is. A CA serves one cluster and no other."""

    ca_file: AbsolutePath = Field(
        description="CA certificates (PEM) that sign the nodes of this cluster and nothing else."
    )
    certificate_file: AbsolutePath = Field(
        description="This node's certificate (PEM) with the DNS name <node.name>.node.quorepo."
    )
    key_file: AbsolutePath = Field(
        description="The private key (PEM, not encrypted) of the certificate; mode 0600."
    )


class ClusterSection(_Section):
    """The cluster that this node belongs to."""

    peers: dict[NodeName, ReachableAddress] = Field(
        description="Peer address of every founding member by name, this node included.",
        min_length=1,
    )
    tls: TlsSection
    rejoin_empty: bool = Field(
        False,
        description="May a node of this name with an empty disk come back as a new replica?",
    )

    @model_validator(mode="after")
    def _peer_addresses_differ(self) -> ClusterSection:
        seen: dict[str, str] = {}
        for name, address in self.peers.items():
            if address in seen:
                raise ValueError(
                    f"peers {seen[address]!r} and {name!r} have one address {address!r}"
                )
            seen[address] = name
        return self


class ListenSection(_Section):
    """Where this node listens. Loopback only but for peers, until the others have TLS too."""

    http: LoopbackAddress = Field(description="HOST:PORT of git over HTTP.")
    grpc: LoopbackAddress = Field(description="HOST:PORT of the public gRPC API.")
    metrics: LoopbackAddress = Field(description="HOST:PORT of /metrics.")
    peer: Address = Field(description="HOST:PORT for the other nodes; mutual TLS.")

    @model_validator(mode="after")
    def _addresses_differ(self) -> ListenSection:
        seen: dict[str, str] = {}
        for key in ("http", "grpc", "metrics", "peer"):
            address = getattr(self, key)
            if address in seen:
                raise ValueError(f"{seen[address]} and {key} both listen on {address!r}")
            seen[address] = key
        return self


class AdvertiseSection(_Section):
    """What this node tells others about itself; what is missing follows from [listen]."""

    http_url: str = Field(
        "", description="URL base of git over HTTP; default `http://` and listen.http."
    )
    grpc_address: str = Field("", description="HOST:PORT of gRPC; default listen.grpc.")
    metrics_url: str = Field(
        "", description="URL of the metrics; default: listen.metrics, path /metrics."
    )
    peer_address: str = Field("", description="HOST:PORT for the other nodes; default listen.peer.")

    @model_validator(mode="after")
    def _well_formed(self) -> AdvertiseSection:
        for key in ("http_url", "metrics_url"):
            value = getattr(self, key)
            if value and not value.startswith(("http://", "https://")):
                raise ValueError(f"{key} must start with http:// or https://, got {value!r}")
        for key in ("grpc_address", "peer_address"):
            if getattr(self, key):
                split_address(getattr(self, key))
        return self

    def completed(self, listen: ListenSection) -> AdvertiseSection:
        """The same with every missing value derived from `listen`."""
        return AdvertiseSection(
            http_url=self.http_url.rstrip("/") or f"http://{listen.http}",
            grpc_address=self.grpc_address or listen.grpc,
            metrics_url=self.metrics_url or f"http://{listen.metrics}/metrics",
            peer_address=self.peer_address or listen.peer,
        )


class AuthSection(_Section):
    """Who may do what. Every user of this slice may do everything."""

    tokens_file: AbsolutePath = Field(
        description='TOML file of lines `user = "token"`, outside data_dir; mode 0600.'
    )


class PushSection(_Section):
    """What a push may do."""

    create_on_push: bool = Field(
        False, description="Does a push to an unknown path create the repository?"
    )


class WorkersSection(_Section):
    """The processes that verify and build packs."""

    count: int = Field(2, ge=1, le=256, description="Worker processes of this node.")
    queue_max: int = Field(
        64, ge=1, le=65536, description="Jobs waiting for a worker before new ones are refused."
    )


class NodeConfig(_Section):
    """Everything a node reads from its configuration file.

    `advertise` is complete: defaults are derived from `listen`.
    """

    node: NodeSection
    cluster: ClusterSection
    listen: ListenSection
    advertise: AdvertiseSection = Field(default_factory=lambda: AdvertiseSection())
    auth: AuthSection
    git: GitSection = Field(default_factory=lambda: GitSection())
    push: PushSection = Field(default_factory=lambda: PushSection())
    limits: StorageLimits = Field(default_factory=lambda: StorageLimits())
    raft: RaftConfig = Field(default_factory=lambda: RaftConfig())
    workers: WorkersSection = Field(default_factory=lambda: WorkersSection())
    storage: StorageSection = Field(default_factory=lambda: StorageSection())

    @model_validator(mode="after")
    def _parts_fit(self) -> NodeConfig:
        advertise = self.advertise.completed(self.listen)
        object.__setattr__(self, "advertise", advertise)  # frozen for everyone else
        expected = self.cluster.peers.get(self.node.name)
        if expected is None:
            known = ", ".join(sorted(self.cluster.peers))
            raise ValueError(f"node.name {self.node.name!r} is not in cluster.peers ({known})")
        if expected != advertise.peer_address:
            raise ValueError(
                f"cluster.peers.{self.node.name} is {expected!r}, but this node advertises "
                f"{advertise.peer_address!r} to its peers (advertise.peer_address or listen.peer)"
            )
        for key, path in (
            ("cluster.tls.ca_file", self.cluster.tls.ca_file),
            ("cluster.tls.certificate_file", self.cluster.tls.certificate_file),
            ("cluster.tls.key_file", self.cluster.tls.key_file),
            ("auth.tokens_file", self.auth.tokens_file),
            ("node.pid_file", self.node.pid_file),
        ):
            if path is not None and path.is_relative_to(self.node.data_dir):
                raise ValueError(
                    f"{key} must lie outside node.data_dir, or an emptied disk loses it: {path}"
                )
        return self


def load_config(path: Path | str) -> NodeConfig:
    """Reads and checks one node's configuration file.

    Raises:
        ConfigError: unreadable, not TOML, unknown keys, wrong values, or parts that do not fit
            together; the message lists every problem found.
    """
    path = Path(path).absolute()
    data = _read_toml(path)
    try:
        return NodeConfig.model_validate(data, context={"base": path.parent})
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in _problems(error))
        raise ConfigError(
            f"configuration {str(path)!r} is wrong, nothing was started:\n{problems}"
        ) from error


def load_peer_credentials(config: NodeConfig) -> Credentials:
    """The files of [cluster.tls], checked against each other, node.name and the clock.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    tls = config.cluster.tls
    return load_credentials(
        config.node.name,
        tls.ca_file,
        tls.certificate_file,
        tls.key_file,
        datetime.datetime.now(datetime.UTC),
    )


def load_tokens(path: Path) -> Mapping[str, str]:
    """The tokens file: user name to token.

    Raises:
        ConfigError: missing, readable by others, not TOML, or a name or token that is not usable.
    """
    text = _read_private(path, "auth.tokens_file")
    try:
        data = tomllib.loads(text.decode())
    except ValueError as error:
        raise ConfigError(f"auth.tokens_file {str(path)!r} is not TOML: {error}") from error
    for user, token in data.items():
        if not _USER_NAME.fullmatch(user):
            raise ConfigError(f"auth.tokens_file {str(path)!r}: user name {user!r} is not usable")
        if not isinstance(token, str) or len(token) < _TOKEN_CHARACTERS_MIN:
            raise ConfigError(
                f"auth.tokens_file {str(path)!r}: the token of {user!r} must be a string of "
                f"at least {_TOKEN_CHARACTERS_MIN} characters"
            )
    if len(set(data.values())) != len(data):
        raise ConfigError(f"auth.tokens_file {str(path)!r}: two users have the same token")
    return data


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"cannot read configuration {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {str(path)!r} is not UTF-8: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {str(path)!r} is not TOML: {error}") from error


def _read_private(path: Path, key: str) -> bytes:
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {key} {str(path)!r}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(
            f"{key} {str(path)!r} is open to other users (mode {mode & 0o777:04o})",
            next_step=f"chmod 600 {path}",
        )
    return content


def _problems(error: ValidationError) -> Iterator[str]:
    """One line per problem, in the words of the file: section, key, what is wrong."""
    for detail in error.errors():
        location = [str(part) for part in detail["loc"]]
        where = ".".join(location)
        if detail["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(location[-1], _known_keys(location[:-1]), n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            what = "section" if len(location) == 1 else "key"
            yield f"unknown {what} {where!r}{hint}"
        elif detail["type"] == "missing":
            what = "section" if len(location) == 1 else "key"
            yield f"missing {what} {where!r}"
        else:
            message = detail["msg"].removeprefix("Value error, ")
            yield f"{where}: {message}" if where else message


def _known_keys(location: list[str]) -> list[str]:
    model: Any = NodeConfig
    for name in location:
        model = model.model_fields[name].annotation
    return list(model.model_fields)
