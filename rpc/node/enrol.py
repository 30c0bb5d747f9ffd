"""Sees to it that a node has its certificate before its processes start.

Owns which way the configuration asks for. Must not know how a certificate is made.
"""

from __future__ import annotations

import datetime
import logging
import os
import subprocess
import sys
from pathlib import Path

from quorepo.cluster.enrolment import (
    TlsFiles,
    enrol_founder,
    enrol_with_secret,
    renew,
    renewal_is_due,
)
from quorepo.rpc.config import NodeConfig
from quorepo.rpc.node.process import PARENT_VARIABLE
from quorepo.storage.errors import ConfigError
from quorepo.storage.logs import fields

__all__ = ["enrol", "tls_files"]

log = logging.getLogger(__name__)


def tls_files(config: NodeConfig) -> TlsFiles:
    """The files of the node's [cluster.tls]."""
    tls = config.cluster.tls
    return TlsFiles(
        node=config.node.name,
        ca=tls.ca_file,
        certificate=tls.certificate_file,
        key=tls.key_file,
        ca_key=tls.ca_key_file,
    )


def enrol(config: NodeConfig, path: Path) -> None:
    """Returns once the certificate is there, renewed when it ends soon.

    Raises:
        ConfigError: it can't be made; what was there is as it was.
    """
    cluster, files = config.cluster, tls_files(config)
    now = datetime.datetime.now(datetime.UTC)
    if files.certificate.exists():
        if renewal_is_due(files, now):
            renew(files, now)
        return
    if cluster.bootstrap:
        enrol_founder(files, now)
    elif cluster.bootstrap_secret_file is not None:
        enrol_with_secret(files, cluster.bootstrap_secret_file, now)
    elif cluster.join_token_file is not None:
        _join(path)
    else:
        raise ConfigError(
            f"node {config.node.name!r} has no certificate: {str(files.certificate)!r} does not "
            "exist; nothing was started",
            next_step="run `quorepo node token` on a member, save what it prints as "
            "cluster.join_token_file, and start again; or bring the files of `quorepo certificate "
            f"issue --node {config.node.name}` here",
        )
    log.info("node enrolled", extra=fields(config=str(path)))


def _join(path: Path) -> None:
    """In a process of its own: one that has used gRPC must not start others."""
    code = subprocess.run(
        [sys.executable, "-P", "-m", "quorepo.rpc.node.join_main", "--config", str(path)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
        check=False,
    ).returncode
    if code:
        raise ConfigError(
            "this node did not join a cluster; the line above says why; nothing was started"
        )
