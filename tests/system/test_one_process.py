"""One data directory has one node: a second process on it changes nothing and says what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.demo import Demo, free_base_port
from support.git import WorkTree, refs_of

from quorepo.storage.errors import FatalError

pytestmark = pytest.mark.system


def test_a_second_node_on_a_data_directory_is_refused_and_the_first_goes_on(
    cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    oid = work.commit("first")
    work.git("push", "--quiet", cluster.url("n1", "one/process"), "main")
    # The same node by another configuration: other ports, another pid file, the same disk.
    config = (cluster.directory / "config" / "n1.toml").read_text()
    fresh = iter(range(free_base_port(1), 1 << 16))
    listen = re.sub(
        r'^(http|grpc|metrics) = "127.0.0.1:\d+"',
        lambda found: f'{found[1]} = "127.0.0.1:{next(fresh)}"', config, flags=re.M,
    )  # fmt: skip
    listen = re.sub(
        r"^pid_file = .*$", f'pid_file = "{tmp_path / "second.pid"}"', listen, flags=re.M
    )
    second = tmp_path / "second.toml"
    second.write_text(listen)
    second.chmod(0o600)

    done = subprocess.run(
        [sys.executable, "-m", "quorepo", "serve", "--config", str(second)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == FatalError.EXIT_CONFIG
    assert "nothing was changed; stop the node that runs on this data directory first" in (
        done.stdout + done.stderr
    )
    work.commit("second")
    work.git("push", "--quiet", cluster.url("n1", "one/process"), "main")
    assert refs_of(cluster.url("n2", "one/process"))["refs/heads/main"] == work.head() != oid
