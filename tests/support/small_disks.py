"""A demo whose nodes have small disks: one tmpfs each, in a mount namespace of the demo's own.

The tests look at them through /proc/<pid>/root, so that nothing is mounted on the machine itself
and nothing is left when the demo ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from support.demo import Demo, DemoNode

__all__ = ["SmallDisks", "can_mount", "on_small_disk", "resize"]

# Data that is there already moves onto the disk, so that a node keeps its identity.
_MOUNT = """
set -e
root=$1; size=$2; shift 2
for name in n1 n2 n3; do
    cp -a "$root/$name" "$root/$name.was"
    mount -t tmpfs -o "size=$size,mode=700" tmpfs "$root/$name"
    cp -a "$root/$name.was/." "$root/$name/"
    rm -rf "$root/$name.was"
done
exec "$@"
"""


def _namespace() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "--propagation", "private"]


def can_mount() -> bool:
    """Whether this machine lets a test mount a tmpfs in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    attempt = [*_namespace(), "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(attempt, capture_output=True, check=False).returncode == 0


def on_small_disk(node: DemoNode, size_bytes: int) -> None:
    """From its next start a node, whose folder is empty, has a disk of its own."""
    node.data_dir.mkdir(mode=0o700, exist_ok=True)
    script = 'mount -t tmpfs -o "size=$1,mode=700" tmpfs "$2"; shift 2; exec "$@"'
    node.argv = [
        *_namespace(), "sh", "-ec", script, "sh", str(size_bytes), str(node.data_dir), *node.argv,
    ]  # fmt: skip


def resize(node: DemoNode, size_bytes: int) -> None:
    """Makes the disk of a running node larger."""
    enter = ["nsenter", "--target", str(node.pid), "--mount"]
    if os.geteuid() != 0:
        enter += ["--user", "--preserve-credentials"]
    remount = ["mount", "-o", f"remount,size={size_bytes}", str(node.data_dir)]
    subprocess.run([*enter, *remount], check=True, capture_output=True)


class SmallDisks(Demo):
    """Three nodes with `size_bytes` of disk each."""

    def __init__(self, directory: Path, *options: str, size_bytes: int) -> None:
        super().__init__(directory, *options)
        self._size_bytes = size_bytes

    def start(self) -> None:
        with Demo(self.directory, *self._options, base_port=self.base_port):
            pass  # makes the folders that the disks are mounted on
        self.wrapper = [
            *_namespace(), "sh", "-c", _MOUNT, "sh", str(self.directory), str(self._size_bytes),
        ]  # fmt: skip
        super().start()

    def disk(self, name: str) -> Path:
        """The folder of a node's disk, as the node sees it."""
        return Path(f"/proc/{self.process.pid}/root{self.nodes[name].data_dir}")

    def free_bytes(self, name: str) -> int:
        status = os.statvfs(self.disk(name))
        return status.f_bavail * status.f_frsize

    def fill(self, name: str, leave_bytes: int) -> None:
        """Takes all but `leave_bytes` of what is free."""
        with (self.disk(name) / "ballast").open("ab") as ballast:
            while (left := self.free_bytes(name) - leave_bytes) >= 4096:
                ballast.write(bytes(min(left // 4096 * 4096, 1 << 20)))
                ballast.flush()

    def make_room(self, name: str) -> None:
        (self.disk(name) / "ballast").unlink(missing_ok=True)
