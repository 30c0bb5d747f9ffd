"""What `quorepo init` writes: a commented configuration file and the secrets that it names.

Owns the shape of the folder. `secrets/` is given to the node, `tls/` and `data/` it makes itself,
so that an emptied data directory loses no certificate. Must not start anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import shlex
from pathlib import Path

from quorepo.cluster.peer.authority import make_bootstrap_secret
from quorepo.rpc.config import load_config
from quorepo.storage.errors import ConfigError
from quorepo.storage.layout import write_durably

__all__ = ["InitPlan", "Initialized", "initialize"]


@dataclasses.dataclass(frozen=True, slots=True)
class InitPlan:
    """What was asked for."""

    bootstrap: bool
    expect: int | None
    join: tuple[str, ...]
    name: str | None
    advertise: str | None
    base_port: int


@dataclasses.dataclass(frozen=True, slots=True)
class Initialized:
    """What was written, and what to do next."""

    config: Path
    files: list[Path]
    next_steps: list[str]


def initialize(folder: Path, plan: InitPlan) -> Initialized:
    """Writes the folder.

    Raises:
        ConfigError: the plan does not fit together, or something is there already; nothing was
            changed.
    """
    _check(plan)
    folder = folder.absolute()
    config = folder / "quorepo.toml"
    files = _secret_files(folder / "secrets", plan)
    for path in (config, *files):
        if path.exists():
            raise ConfigError(
                f"{str(path)!r} exists; nothing was changed",
                next_step="choose another folder, or start the node that is configured there: "
                f"quorepo serve --config {shlex.quote(str(config))}",
            )
    if (folder / "data").exists():
        raise ConfigError(
            f"{str(folder / 'data')!r} exists: a node ran here; nothing was changed",
            next_step="choose another folder",
        )
    (folder / "secrets").mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, content in files.items():
        write_durably(path, content, 0o600)
    write_durably(config, _toml(plan).encode(), 0o644)
    try:
        load_config(config)
    except ConfigError as error:
        for path in (config, *files):
            path.unlink()
        raise ConfigError(f"this makes no node: {error}; nothing was left behind") from error
    return Initialized(config, [config, *files], _next_steps(config, plan))


def _check(plan: InitPlan) -> None:
    ways = plan.bootstrap + (plan.expect is not None) + (bool(plan.join) and plan.expect is None)
    if ways != 1:
        raise ConfigError(
            "say how the node gets into its cluster: one of --bootstrap, --bootstrap-expect N with "
            "--join for each of the N, or --join alone; nothing was changed",
            next_step="quorepo init --help",
        )


def _secret_files(folder: Path, plan: InitPlan) -> dict[Path, bytes]:
    if not plan.bootstrap and plan.expect is None:
        return {}  # the cluster has users already: their tokens come with joining
    token = secrets.token_urlsafe(24)
    digest = hashlib.sha256(token.encode()).hexdigest()
    files = {
        folder / "admin-token": f"{token}\n".encode(),
        folder / "tokens": f'admin = {{ sha256 = "{digest}", role = "admin" }}\n'.encode(),
    }
    if plan.expect is not None:
        files[folder / "bootstrap-secret"] = make_bootstrap_secret()
    return files


def _cluster_toml(plan: InitPlan) -> str:
    join = json.dumps(list(plan.join))
    if plan.bootstrap:
        return """\
# This node begins the cluster, once: ignored as soon as there is a cluster. Others join with a
# token of `quorepo node token`.
bootstrap = true
"""
    if plan.expect is not None:
        return f"""\
# These nodes begin the cluster together, once. File and secret are the same on all of them.
bootstrap_expect = {plan.expect}
join = {join}
bootstrap_secret_file = "secrets/bootstrap-secret"
"""
    return f"""\
# Any members. The token is used once; `quorepo node token` on a member prints one.
join = {join}
join_token_file = "secrets/join-token"
"""


def _toml(plan: InitPlan) -> str:
    name = f'name = "{plan.name}"' if plan.name else '# name = "n1"  # default: the host name'
    host = (
        f'host = "{plan.advertise}"'
        if plan.advertise
        else '# host = "git1.example.com"  # default: the host name'
    )
    port = plan.base_port
    return f"""\
# A node of quorepo. Every key: docs/configuration.md. Relative paths are relative to this file.
[node]
{name}
data_dir = "data"

[cluster]
{_cluster_toml(plan).rstrip()}
# May it come back by itself as a new replica with an emptied disk? If not, it waits for:
# quorepo node replace NAME, on another node.
rejoin_empty = false

[cluster.tls]
# Made by the node itself. With the CA's key it lets others join and renews what ends.
ca_file = "tls/ca.pem"
ca_key_file = "tls/ca.key"
certificate_file = "tls/node.pem"
key_file = "tls/node.key"

[listen]
http = "0.0.0.0:{port}"
grpc = "0.0.0.0:{port + 1}"
metrics = "0.0.0.0:{port + 2}"
peer = "0.0.0.0:{port + 3}"

[advertise]
# What others connect to. A name is better than an address: it is looked up again when it moves.
{host}

[auth]
# user = {{ sha256 = "…", role = "read|write|admin" }}, from: printf %s "$TOKEN" | sha256sum
tokens_file = "secrets/tokens"

[http.tls]
# Empty: signed by the cluster's CA (tls/ca.pem is what clients have to trust). For a certificate of
# another CA, which is read again when it changes:
# certificate_file = "/etc/letsencrypt/live/git1.example.com/fullchain.pem"
# key_file = "/etc/letsencrypt/live/git1.example.com/privkey.pem"

[grpc.tls]

[metrics.tls]
"""


def _next_steps(config: Path, plan: InitPlan) -> list[str]:
    serve = f"quorepo serve --config {shlex.quote(str(config))}"
    admin = config.parent / "secrets" / "admin-token"
    if plan.bootstrap:
        return [f"{serve}   # then: quorepo node token, for every node that is to join"]
    if plan.expect is not None:
        return [
            f"copy {config.parent} to all {plan.expect} machines, before the first start",
            f"{serve}   # on each of them, in any order",
            f"keep {admin} for yourself and remove it from the machines",
        ]
    return [
        f"write a token of `quorepo node token` to {config.parent / 'secrets' / 'join-token'} "
        "(mode 0600)",
        serve,
    ]
