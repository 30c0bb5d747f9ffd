"""The configuration of one node: one TOML file, one frozen, cross-validated model.

Owns the names, defaults and rules of the file. Must not know how the parts that are configured
work; their own limits live beside them (`quorepo.storage.limits`,
`quorepo.cluster.raft.interface`).
"""

from __future__ import annotations

import datetime
import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from quorepo.cluster.peer.certificates import Credentials, load_credentials
from quorepo.cluster.raft.interface import RaftConfig
from quorepo.rpc.api_config import ApiSection
from quorepo.rpc.auth import ROLES, TokenDigest
from quorepo.rpc.cluster_config import ClusterSection, TlsSection
from quorepo.rpc.config_environment import apply_environment, effective
from quorepo.rpc.config_types import AbsolutePath, NodeName, Section, machine_name, split_address
from quorepo.rpc.git_settings import GitSection
from quorepo.rpc.imports.config import ImportsSection
from quorepo.rpc.listener_config import (
    AdvertiseSection,
    GrpcSection,
    HttpSection,
    ListenerTls,
    ListenSection,
    MetricsSection,
    check_listeners,
)
from quorepo.rpc.proposals_config import ProposalsSection
from quorepo.rpc.storage_config import StorageSection
from quorepo.storage.errors import ConfigError
from quorepo.storage.limits import StorageLimits

__all__ = [
    "AdvertiseSection",
    "AuthSection",
    "ClusterSection",
    "ListenSection",
    "ListenerTls",
    "NodeConfig",
    "NodeSection",
    "ProposalsSection",
    "PushSection",
    "StorageSection",
    "TlsSection",
    "WorkersSection",
    "load_config",
    "load_peer_credentials",
    "load_tokens",
    "load_with_origins",
    "section_model",
    "split_address",
]

_USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN_CHARACTERS_MIN = 20
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class NodeSection(Section):
    """Who this node is."""

    name: NodeName = Field(
        default_factory=machine_name,
        validate_default=True,
        description="Name of this node, unique in its cluster, never changed; default: the host "
        "name of the machine up to its first dot.",
    )
    data_dir: AbsolutePath = Field(description="Directory that holds everything this node stores.")
    pid_file: AbsolutePath | None = Field(
        None, description="File that names the node's supervisor while it runs; outside data_dir."
    )


class AuthSection(Section):
    """Who may do what."""

    tokens_file: AbsolutePath = Field(
        description="TOML file, outside data_dir, mode 0600, of lines "
        '`user = { sha256 = "hex of the token\'s SHA-256", role = "read|write|admin" }`, or '
        '`user = "token"` for an admin whose token may stand there.'
    )


class PushSection(Section):
    """What a push may do."""

    create_on_push: bool = Field(
        False, description="Does a push to an unknown path create the repository?"
    )


class WorkersSection(Section):
    """The processes that verify and build packs."""

    count: int = Field(2, ge=1, le=256, description="Worker processes of this node.")
    queue_max: int = Field(
        64, ge=1, le=65536, description="Jobs waiting for a worker before new ones are refused."
    )


class NodeConfig(Section):
    """Everything a node reads from its configuration file.

    `advertise` is complete: defaults are derived from `listen`.
    """

    node: NodeSection
    cluster: ClusterSection
    listen: ListenSection
    advertise: AdvertiseSection = Field(default_factory=lambda: AdvertiseSection())
    auth: AuthSection
    http: HttpSection = Field(default_factory=lambda: HttpSection())
    grpc: GrpcSection = Field(default_factory=lambda: GrpcSection())
    metrics: MetricsSection = Field(default_factory=lambda: MetricsSection())
    git: GitSection = Field(default_factory=lambda: GitSection())
    push: PushSection = Field(default_factory=lambda: PushSection())
    api: ApiSection = Field(default_factory=lambda: ApiSection())
    imports: ImportsSection = Field(default_factory=lambda: ImportsSection())
    limits: StorageLimits = Field(default_factory=lambda: StorageLimits())
    raft: RaftConfig = Field(default_factory=lambda: RaftConfig())
    proposals: ProposalsSection = Field(default_factory=lambda: ProposalsSection())
    workers: WorkersSection = Field(default_factory=lambda: WorkersSection())
    storage: StorageSection = Field(default_factory=lambda: StorageSection())

    @model_validator(mode="after")
    def _parts_fit(self) -> NodeConfig:
        listeners = (self.http, self.grpc, self.metrics)
        check_listeners(self.listen, *listeners)
        advertise = self.advertise.completed(self.listen, *listeners)
        object.__setattr__(self, "advertise", advertise)  # frozen for everyone else
        self.cluster.check_own_address(self.node.name, advertise.peer_address)
        for key, path in (
            *self.cluster.files(),
            ("auth.tokens_file", self.auth.tokens_file),
            ("node.pid_file", self.node.pid_file),
        ):
            if path is not None and path.is_relative_to(self.node.data_dir):
                raise ValueError(
                    f"{key} must lie outside node.data_dir, or an emptied disk loses it: {path}"
                )
        return self


def load_config(path: Path | str, environment: Mapping[str, str] | None = None) -> NodeConfig:
    """Reads and checks one node's configuration file, as the environment overrides it.

    Args:
        environment: instead of the process's own.

    Raises:
        ConfigError: unreadable, not TOML, unknown keys, wrong values, or parts that do not fit
            together; the message lists every problem found.
    """
    return load_with_origins(path, environment)[0]


def load_with_origins(
    path: Path | str, environment: Mapping[str, str] | None = None
) -> tuple[NodeConfig, list[dict[str, Any]]]:
    """The same, and every setting with its value and origin (`config_environment.effective`).

    Raises:
        ConfigError: as `load_config`.
    """
    path = Path(path).absolute()
    data = _read_toml(path)
    variables = apply_environment(data, os.environ if environment is None else environment)
    try:
        config = NodeConfig.model_validate(data, context={"base": path.parent})
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in _problems(error, variables))
        raise ConfigError(
            f"configuration {str(path)!r} is wrong, nothing was started:\n{problems}"
        ) from error
    return config, list(effective(config, data, variables))


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


def load_tokens(path: Path) -> Mapping[str, str | TokenDigest]:
    """The tokens file: user name to token, or to a token's digest and role.

    Raises:
        ConfigError: missing, readable by others, not TOML, or a name or token that is not usable.
    """
    text = _read_private(path, "auth.tokens_file")
    try:
        data = tomllib.loads(text.decode())
    except ValueError as error:
        raise ConfigError(f"auth.tokens_file {str(path)!r} is not TOML: {error}") from error
    tokens: dict[str, str | TokenDigest] = {}
    for user, value in data.items():
        if not _USER_NAME.fullmatch(user):
            raise ConfigError(f"auth.tokens_file {str(path)!r}: user name {user!r} is not usable")
        try:
            tokens[user] = _token(user, value)
        except ValueError as error:
            raise ConfigError(f"auth.tokens_file {str(path)!r}: {error}") from None
    digests = [t if isinstance(t, TokenDigest) else TokenDigest.of(t) for t in tokens.values()]
    if len({token.sha256 for token in digests}) != len(digests):
        raise ConfigError(f"auth.tokens_file {str(path)!r}: two users have the same token")
    return tokens


def _token(user: str, value: object) -> str | TokenDigest:
    """Raises ValueError; never repeats what stands there."""
    if isinstance(value, dict):
        digest, role = value.get("sha256"), value.get("role")
        if set(value) != {"sha256", "role"} or role not in ROLES:
            raise ValueError(f"{user!r} needs `sha256` and a `role` of {', '.join(ROLES)}")
        if not isinstance(digest, str) or not _SHA256_HEX.fullmatch(digest):
            raise ValueError(f"the sha256 of {user!r} must be 64 lowercase hex digits")
        return TokenDigest(bytes.fromhex(digest), role)
    if not isinstance(value, str) or len(value) < _TOKEN_CHARACTERS_MIN:
        raise ValueError(
            f"the token of {user!r} must be a string of at least {_TOKEN_CHARACTERS_MIN} characters"
        )
    return value


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


def _problems(error: ValidationError, variables: Mapping[str, str]) -> Iterator[str]:
    """One line per problem, in the words of the file: section, key, what is wrong. What came from
    the environment is said to have come from there."""
    for detail in error.errors():
        location = [str(part) for part in detail["loc"]]
        where = ".".join(location)
        variable = next((v for k, v in variables.items() if f"{where}.".startswith(f"{k}.")), "")
        variable = variable or next(
            (v for k, v in variables.items() if where and k.startswith(f"{where}.")), ""
        )
        origin = f" (environment: {variable})" if variable else ""
        if detail["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(location[-1], _known_keys(location[:-1]), n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            what = "section" if len(location) == 1 else "key"
            yield f"unknown {what} {where!r}{hint}{origin}"
        elif detail["type"] == "missing":
            what = "section" if len(location) == 1 else "key"
            yield f"missing {what} {where!r}"
        else:
            message = detail["msg"].removeprefix("Value error, ")
            yield f"{where}: {message}{origin}" if where else message


def _known_keys(location: list[str]) -> list[str]:
    model: Any = NodeConfig
    for name in location:
        model = section_model(model.model_fields[name].annotation)
    return list(model.model_fields)


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type is, `Section | None` too; None for a plain value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
