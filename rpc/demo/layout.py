"""The folder of a demo: configuration, secrets and data of every node, and where each one listens.

    D/layout.json                 how many nodes, which base port, ephemeral or not; never changes
    D/config/<node>.toml          written at every start, for two nodes more than are started
    D/secrets/admin-token, tokens  made once, mode 0600, outside every data directory
    D/secrets/ca.*, <node>.*      the CA and the certificates of the nodes, likewise
    D/<node>/                     the node's data directory
    D/logs/<node>.log, D/run/<node>.pid, D/demo.json

Owns these names and what is written at first. Must not start or stop anything.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import secrets
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from quorepo.rpc.demo.certificates import provide_certificates
from quorepo.storage.errors import ConfigError
from quorepo.storage.layout import write_durably

__all__ = ["DEFAULT_BASE_PORT", "NODES_MAX", "DemoLayout", "DemoNode", "prepare"]

DEFAULT_BASE_PORT = 7420
NODES_MAX = 9
_OVERRIDABLE = ("raft", "storage", "limits", "workers")
_PORTS_PER_NODE = 10
_SPARES = 2
_VERSION = 1
_HOST = "127.0.0.1"
_PORT_MAX = 65535


@dataclasses.dataclass(frozen=True, slots=True)
class DemoNode:
    """One node of a demo. Addresses are HOST:PORT, paths are absolute."""

    name: str
    root: Path
    first_port: int

    @property
    def http(self) -> str:
        return f"{_HOST}:{self.first_port}"

    @property
    def grpc(self) -> str:
        return f"{_HOST}:{self.first_port + 1}"

    @property
    def metrics(self) -> str:
        return f"{_HOST}:{self.first_port + 2}"

    @property
    def peer(self) -> str:
        return f"{_HOST}:{self.first_port + 3}"

    @property
    def config(self) -> Path:
        return self.root / "config" / f"{self.name}.toml"

    @property
    def data_dir(self) -> Path:
        return self.root / self.name

    @property
    def log(self) -> Path:
        return self.root / "logs" / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        return self.root / "run" / f"{self.name}.pid"

    @property
    def argv(self) -> list[str]:
        """Starts this node, from anywhere, also with an emptied data directory."""
        return [sys.executable, "-m", "quorepo", "serve", "--config", str(self.config)]

    @property
    def addresses(self) -> tuple[tuple[str, str], ...]:
        """(what, HOST:PORT) of everything that the node listens on."""
        return (
            ("http", self.http),
            ("grpc", self.grpc),
            ("metrics", self.metrics),
            ("peer", self.peer),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class DemoLayout:
    """A prepared demo folder."""

    root: Path
    nodes: tuple[DemoNode, ...]
    admin_token: str
    ephemeral: bool
    spares: tuple[DemoNode, ...] = ()  # not started: nodes to add by hand

    @property
    def json_path(self) -> Path:
        """What is written once every node is ready."""
        return self.root / "demo.json"

    @property
    def token_path(self) -> Path:
        return self.root / "secrets" / "admin-token"

    def write_json(self, pids: Sequence[int]) -> None:
        """Writes demo.json, atomically and for this user only: it holds the token."""
        nodes = [
            {
                "name": node.name,
                "pid": pid,
                "argv": node.argv,
                "http": f"http://{node.http}",
                "grpc": node.grpc,
                "metrics": f"http://{node.metrics}/metrics",
                "data_dir": str(node.data_dir),
            }
            for node, pid in zip(self.nodes, pids, strict=True)
        ]
        content = {"nodes": nodes, "admin_token": self.admin_token}
        write_durably(self.json_path, (json.dumps(content, indent=2) + "\n").encode(), 0o600)

    def remove_data(self) -> None:
        """Removes what an ephemeral demo leaves; the logs too."""
        shutil.rmtree(self.root, ignore_errors=True)


def prepare(
    root: Path,
    nodes: int | None = None,
    base_port: int | None = None,
    *,
    ephemeral: bool = False,
    create_on_push: bool = True,
    overrides: Sequence[str] = (),
) -> DemoLayout:
    """Makes a demo folder ready to start from, or finds the one that is there.

    Args:
        root: The folder; made when missing.
        nodes: How many; None: as many as the folder has, or three.
        base_port: Where the first node's ports begin; None: as the folder has it, or 7420.
        ephemeral: The folder is going to be removed at the end.
        create_on_push: Does a push to an unknown path create the repository?
        overrides: `section.key=value` for the nodes' configuration files, values as in TOML.

    Raises:
        ConfigError: an override cannot be, the folder belongs to a demo of another shape, or holds
            something else.
    """
    more = _override_toml(overrides)
    root = root.absolute()
    shape = _shape(root, nodes, base_port, ephemeral)
    nodes, base_port = shape["nodes"], shape["base_port"]
    for name in ("config", "secrets", "logs", "run"):
        (root / name).mkdir(exist_ok=True, mode=0o700)
    token = _secret(root / "secrets" / "admin-token", secrets.token_urlsafe(24))
    _secret(root / "secrets" / "tokens", f'admin = "{token}"')
    members = tuple(
        DemoNode(f"n{number + 1}", root, base_port + number * _PORTS_PER_NODE)
        for number in range(nodes)
    )
    spares = _spares(root, nodes, base_port)
    now = datetime.datetime.now(datetime.UTC)
    provide_certificates(root / "secrets", [node.name for node in (*members, *spares)], now)
    for node in members:
        text = _node_toml(node, members, create_on_push=create_on_push) + more
        write_durably(node.config, text.encode(), 0o600)
    for node in spares:
        text = _node_toml(node, (*members, node), create_on_push=create_on_push) + more
        write_durably(node.config, text.encode(), 0o600)
    return DemoLayout(root, members, token, ephemeral, spares)


def _spares(root: Path, nodes: int, base_port: int) -> tuple[DemoNode, ...]:
    """Nodes that have all but a process: started, they wait to be added."""
    numbers = range(nodes, min(nodes + _SPARES, NODES_MAX))
    made = (DemoNode(f"n{n + 1}", root, base_port + n * _PORTS_PER_NODE) for n in numbers)
    return tuple(node for node in made if node.first_port + 3 <= _PORT_MAX)


def _shape(root: Path, nodes: int | None, base_port: int | None, ephemeral: bool) -> dict[str, int]:
    """What `layout.json` says; written here when the folder is new."""
    path = root / "layout.json"
    if not path.exists():
        if root.is_dir() and any(root.iterdir()):
            raise ConfigError(
                f"{str(root)!r} is not empty and holds no demo; nothing was changed",
                next_step="choose another --data-dir",
            )
        shape = {
            "version": _VERSION,
            "nodes": 3 if nodes is None else nodes,
            "base_port": DEFAULT_BASE_PORT if base_port is None else base_port,
            "ephemeral": ephemeral,
        }
        _check_ports(shape["nodes"], shape["base_port"])
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(path, (json.dumps(shape) + "\n").encode(), 0o600)
        return shape
    shape = _read_shape(path)
    if ephemeral and not shape["ephemeral"]:
        raise ConfigError(
            f"{str(root)!r} holds a demo whose data was to stay, --ephemeral would remove it; "
            "nothing was changed",
            next_step="leave out --data-dir or choose another one",
        )
    for what, asked, option in (
        ("nodes", nodes, "--nodes"),
        ("base_port", base_port, "--base-port"),
    ):
        if asked is not None and asked != shape[what]:
            raise ConfigError(
                f"{str(root)!r} holds a demo with {option} {shape[what]}, not {asked}; "
                "nothing was changed",
                next_step=f"leave out {option} or choose another --data-dir",
            )
    return shape


def _read_shape(path: Path) -> dict[str, int]:
    try:
        stored = json.loads(path.read_bytes())
        shape = {key: int(stored[key]) for key in ("version", "nodes", "base_port", "ephemeral")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cannot read {str(path)!r} ({error}); nothing was changed",
            next_step="choose another --data-dir",
        ) from error
    if shape["version"] != _VERSION:
        raise ConfigError(
            f"{str(path)!r} has version {shape['version']}, this program knows {_VERSION}; "
            "nothing was changed",
            next_step="choose another --data-dir",
        )
    return shape


def _check_ports(nodes: int, base_port: int) -> None:
    if not 1 <= nodes <= NODES_MAX:
        raise ConfigError(f"a demo has 1 to {NODES_MAX} nodes, got {nodes}")
    last = base_port + (nodes - 1) * _PORTS_PER_NODE + 3
    if base_port < 1024 or last > _PORT_MAX:
        raise ConfigError(f"ports {base_port} to {last} are not all between 1024 and 65535")


def _secret(path: Path, fresh: str) -> str:
    if not path.exists():
        write_durably(path, f"{fresh}\n".encode(), 0o600)
    return path.read_text(encoding="utf-8").strip()


def _node_toml(node: DemoNode, members: Sequence[DemoNode], *, create_on_push: bool) -> str:
    peers = ", ".join(f'{member.name} = "{member.peer}"' for member in members)
    secrets_dir = node.root / "secrets"
    return f"""\
# Written by `quorepo demo`; the next start writes it again.
[node]
name = "{node.name}"
data_dir = {_toml_string(node.data_dir)}
pid_file = {_toml_string(node.pid_file)}

[cluster]
peers = {{ {peers} }}
rejoin_empty = true

[cluster.tls]
ca_file = {_toml_string(secrets_dir / "ca.pem")}
certificate_file = {_toml_string(secrets_dir / f"{node.name}.pem")}
key_file = {_toml_string(secrets_dir / f"{node.name}.key")}

[listen]
http = "{node.http}"
grpc = "{node.grpc}"
metrics = "{node.metrics}"
peer = "{node.peer}"

[auth]
tokens_file = {_toml_string(secrets_dir / "tokens")}

[push]
create_on_push = {str(create_on_push).lower()}
"""


def _override_toml(overrides: Sequence[str]) -> str:
    """The sections of the configuration file that the demo does not write itself."""
    sections: dict[str, list[str]] = {}
    for override in overrides:
        name, _, value = override.partition("=")
        section, _, key = name.strip().partition(".")
        if section not in _OVERRIDABLE or not key.isidentifier():
            raise ConfigError(
                f"cannot set {name.strip()!r}: expected SECTION.KEY=VALUE with a section of "
                f"{', '.join(_OVERRIDABLE)}; nothing was changed"
            )
        try:
            tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                f"{value!r} is no TOML value ({error}); nothing was changed"
            ) from None
        sections.setdefault(section, []).append(f"{key} = {value}\n")
    return "".join(f"\n[{name}]\n{''.join(lines)}" for name, lines in sections.items())


def _toml_string(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)  # a JSON string is a TOML basic string
