"""`quorepo cluster debug-bundle`: what somebody needs who looks at a problem from elsewhere, in one
file, without secrets.

Owns what goes in and what is taken out. Every text passes `Scrubber` before it is written.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import ssl
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from quorepo.rpc.cli.failures import EXIT_USAGE, Failure
from quorepo.rpc.cli.options import Settings, common_options, config_option

__all__ = ["Scrubber", "debug_bundle"]

_LOG_BYTES_MAX = 4 * 1024 * 1024  # of the end of each log
_METRICS_TIMEOUT_S = 5.0
_METRICS_BYTES_MAX = 8 * 1024 * 1024
_SECRET_CHARS_MIN = 8  # what is shorter stands in texts by chance
_SECRET_BYTES_MAX = 256 * 1024
_HISTORY = 100
_REMOVED = "[removed]"
_PATTERNS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
    re.compile(r"quorepo-join-\d+:[A-Za-z0-9+/=_.-]+"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9+/=_.~-]{8,}"),
    re.compile(r"(?i)(?<=basic )[A-Za-z0-9+/=]{8,}"),
    re.compile(r"(?<=://)[^\s/@]+:[^\s/@]+(?=@)"),
)


class Scrubber:
    """Takes secrets out of a text: those that it was told, and what looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret.strip() for secret in secrets}
        self._known = sorted((s for s in known if len(s) >= _SECRET_CHARS_MIN), key=len)[::-1]

    def clean(self, text: str) -> str:
        """The text without them."""
        for secret in self._known:
            text = text.replace(secret, _REMOVED)
        for pattern in _PATTERNS:
            text = pattern.sub(_REMOVED, text)
        return text


@click.command("debug-bundle")
@click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it, mode 0600; must not exist.  [default: quorepo-debug-TIME.tar.gz]",
)
@config_option(required=False)
@click.option(
    "--log",
    "logs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A node's log, of which the end goes in; may be repeated.",
)
@common_options
def debug_bundle(
    settings: Settings, path: Path | None, config: str | None, logs: tuple[Path, ...]
) -> None:
    """Writes a .tar.gz for whoever looks into a problem; tokens, keys and passwords are left out.

    In it: status, health, members and their history, versions, the metrics of the nodes that
    answer; with --config on a node's machine its configuration and what doctor finds; with --log
    the last 4 MiB of a log. What could not be asked is named in manifest.json. Repository paths,
    node names and addresses are in it.

    \b
    Examples:
      quorepo cluster debug-bundle
      journalctl -u quorepo -n 20000 > node.log
      quorepo cluster debug-bundle --config /var/lib/quorepo/quorepo.toml --log node.log
    """
    from quorepo.rpc.cli.output import emit_done

    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = path or Path(f"quorepo-debug-{stamp}.tar.gz")
    if path.exists():
        raise Failure(
            f"{str(path)!r} exists; nothing was written",
            next_step="name another --file",
            exit_code=EXIT_USAGE,
        )
    bundle = _Bundle(Scrubber(_secrets(settings, config)))
    _of_the_cluster(bundle, settings)
    if config is not None:
        bundle.ask("config.json", lambda: _configuration(config))
        bundle.ask("doctor.json", lambda: _doctor(config))
    for number, log in enumerate(logs, start=1):
        bundle.ask(f"logs/{number}-{log.name}", lambda log=log: _end_of(log))  # type: ignore[misc]
    bundle.ask("versions.json", _versions)
    bundle.write(path)
    document = {"file": str(path), "contents": sorted(bundle.files), "problems": bundle.problems}
    for name, problem in bundle.problems.items():
        click.echo(f"without {name}: {problem}", err=True)
    emit_done(document, settings.output, f"wrote {path}: {len(bundle.files)} files, no secrets")


class _Bundle:
    """The files by name, cleaned, and why others are missing."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self.files: dict[str, str] = {}
        self.problems: dict[str, str] = {}

    def ask(self, name: str, question: Callable[[], Any]) -> Any:
        """Adds an answer; one that fails is told and stops nothing. Gives the answer back."""
        from quorepo.storage.errors import QuorepoError

        try:
            answer = question()
        except (Failure, QuorepoError, OSError, ValueError) as error:
            text = error.message if isinstance(error, Failure) else str(error)
            self.problems[name] = self._scrubber.clean(text)
            return None
        text = answer if isinstance(answer, str) else json.dumps(answer, indent=2, default=str)
        self.files[name] = self._scrubber.clean(text)
        return answer

    def write(self, path: Path) -> None:
        """Raises Failure when it can't be written."""
        manifest = {"written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "contents": sorted(self.files), "missing": self.problems}  # fmt: skip
        self.files["manifest.json"] = json.dumps(manifest, indent=2)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with (
                open(descriptor, "wb") as file,
                tarfile.open(fileobj=file, mode="w:gz") as archive,
            ):
                for name, text in sorted(self.files.items()):
                    data = text.encode()
                    entry = tarfile.TarInfo(f"quorepo-debug/{name}")
                    entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                    archive.addfile(entry, io.BytesIO(data))
        except OSError as error:
            raise Failure(
                f"cannot write {str(path)!r}: {error}", next_step="name another --file"
            ) from error


def _of_the_cluster(bundle: _Bundle, settings: Settings) -> None:
    from google.protobuf.json_format import MessageToDict

    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.health import problems, verdict
    from quorepo.rpc.cli.status import status_document
    from quorepo.v1 import cluster_pb2

    def ask(method: str, request: Any) -> dict[str, Any]:
        with connected(settings) as client:
            answer = client.call(getattr(client.cluster, method), request)
        return MessageToDict(answer, preserving_proto_field_name=True)

    def status() -> dict[str, Any]:
        with connected(settings) as client:
            answer = client.call(client.cluster.GetStatus, cluster_pb2.GetStatusRequest())
        return status_document(answer)

    found = bundle.ask("status.json", status)
    if found is None:
        return
    bundle.ask(
        "health.json",
        lambda: {
            "verdict": verdict(problems(found)),
            "problems": [problem.document() for problem in problems(found)],
        },
    )
    bundle.ask("nodes.json", lambda: ask("ListNodes", cluster_pb2.ListNodesRequest()))
    history = cluster_pb2.ListMembershipChangesRequest(limit=_HISTORY)
    bundle.ask("history.json", lambda: ask("ListMembershipChanges", history))
    bundle.ask("scrub.json", lambda: ask("Verify", cluster_pb2.VerifyRequest()))
    for node in found["nodes"]:
        if node["metrics"] and node["reachable"]:
            bundle.ask(
                f"metrics/{node['name']}.txt",
                lambda url=node["metrics"]: _metrics(settings, url),  # type: ignore[misc]
            )


def _metrics(settings: Settings, url: str) -> str:
    """What a node counts. The token goes to the cluster's own nodes only, over TLS or loopback."""
    from urllib.parse import urlsplit

    from quorepo.rpc.loopback import stays_here

    parts = urlsplit(url)
    request = urllib.request.Request(url)  # noqa: S310 - the scheme is looked at below
    context: ssl.SSLContext | None = None
    if parts.scheme == "https":
        ca_pem = settings.ca_pem()
        context = ssl.create_default_context(cadata=None if ca_pem is None else ca_pem.decode())
    elif parts.scheme != "http" or not stays_here(parts.netloc):
        raise ValueError(f"{url} is not asked without TLS")
    request.add_header("Authorization", f"Bearer {settings.token()}")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    with opener.open(request, timeout=_METRICS_TIMEOUT_S) as response:
        return str(response.read(_METRICS_BYTES_MAX).decode(errors="replace"))


def _configuration(config: str) -> Any:
    from quorepo.rpc.config import load_with_origins

    return load_with_origins(config)[1]


def _doctor(config: str) -> Any:
    from quorepo.rpc.doctor.run import examine

    return [finding.document() for finding in examine(Path(config).absolute())]


def _end_of(log: Path) -> str:
    with open(log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LOG_BYTES_MAX))
        return file.read(_LOG_BYTES_MAX).decode(errors="replace")


def _versions() -> dict[str, str]:
    from importlib import metadata

    from quorepo import __version__
    from quorepo.cluster.state.levels import LEVEL

    names = ("dulwich", "pysyncobj", "grpcio", "protobuf", "cryptography", "aiohttp", "pydantic")
    found = {"quorepo": __version__, "level": str(LEVEL), "python": platform.python_version(),
             "system": platform.platform()}  # fmt: skip
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _secrets(settings: Settings, config: str | None) -> Iterable[str]:
    """Whatever must not be in it, as far as this user can read it; other secrets have patterns."""
    from quorepo.rpc.config import load_config
    from quorepo.storage.errors import ConfigError

    yield settings.token()
    if config is None:
        return
    try:
        loaded = load_config(config)
    except ConfigError:
        return  # config.json says why
    tls, tokens = loaded.cluster.tls, loaded.auth.tokens_file
    named = [tokens, tokens.with_name("admin-token"), tls.key_file, tls.ca_key_file]
    named += [loaded.cluster.join_token_file, loaded.cluster.bootstrap_secret_file]
    for path in named:
        if path is not None and path.is_file():
            yield from _words_of(path)


def _words_of(path: Path) -> Iterable[str]:
    """Each line, and each quoted word of it: a file of users has one token a line."""
    try:
        text = path.read_bytes()[:_SECRET_BYTES_MAX].decode(errors="replace")
    except OSError:
        return  # who can't read it can't put it in either
    for line in text.splitlines():
        yield line
        yield from re.findall(r'"([^"]+)"', line)
