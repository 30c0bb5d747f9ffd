"""Machines of a test's own: network namespaces on one bridge, each with a host name and a folder.

What runs in one sees its own addresses and ports, its name as the host name, /etc/hosts as the test
wrote it, and its folder as /var/lib/quorepo, so command lines and files can be those of real
machines. Nothing outside the namespaces is changed. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from support.git import ENVIRONMENT
from support.waiting import eventually

__all__ = ["QUOREPO", "STATE", "Machines", "can_make_machines"]

STATE = "/var/lib/quorepo"
QUOREPO = Path(sys.executable).parent / "quorepo"
_ENTER = """\
set -e
mount --make-rprivate /
mount --bind {hosts} /etc/hosts
"""
_BECOME = """\
mount -t tmpfs none /var/lib
mkdir /var/lib/quorepo
mount --bind {folder} /var/lib/quorepo
hostname {name}
"""


def can_make_machines() -> bool:
    """Are there root rights and namespaces here?"""
    if os.geteuid() != 0:
        return False
    name = f"q{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        return False
    probe = ["ip", "netns", "exec", name, "unshare", "-m", "-u", "mount", "--make-rprivate", "/"]
    works = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", name], check=True)
    return works


class Machines:
    """A bridge, machines on it, and a place beside them for clients; use as a context manager."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = list(names)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._prefix = f"q{os.getpid()}-"
        self._hosts = root / "hosts"
        self._made: list[str] = []
        self.addresses = {name: f"10.99.0.{n}" for n, name in enumerate(names, start=1)}

    def __enter__(self) -> Machines:
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._namespace("lab")
            self._ip("lab", "link add br0 type bridge", "link set br0 up")
            self._ip("lab", "addr add 10.99.0.254/24 dev br0", "link set lo up")
            for name in self.names:
                self._add_machine(name)
            self._write_hosts()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self.kill(name)
        for namespace in self._made:
            subprocess.run(["ip", "netns", "del", self._prefix + namespace], check=True)

    def _namespace(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self._prefix + name], check=True)
        self._made.append(name)

    def _ip(self, namespace: str, *commands: str) -> None:
        for command in commands:
            argv = ["ip", "-n", self._prefix + namespace, *command.split()]
            subprocess.run(argv, check=True, capture_output=True)

    def _add_machine(self, name: str) -> None:
        self.folder(name).mkdir(parents=True, exist_ok=True)
        self._namespace(name)
        peer = f"netns {self._prefix}{name}"
        self._ip("lab", f"link add v-{name} type veth peer name eth0 {peer}")
        self._ip("lab", f"link set v-{name} master br0 up")
        self._ip(name, "link set lo up", "link set eth0 up")
        self._ip(name, f"addr add {self.addresses[name]}/24 dev eth0")

    def _write_hosts(self) -> None:
        """In place: the file is mounted where names are looked up."""
        lines = ["127.0.0.1 localhost", *(f"{a} {n}" for n, a in self.addresses.items())]
        self._hosts.write_text("\n".join(lines) + "\n")

    def move(self, name: str, address: str) -> None:
        """Gives a machine another address, under its old name."""
        self._ip(name, f"addr del {self.addresses[name]}/24 dev eth0")
        self._ip(name, f"addr add {address}/24 dev eth0")
        self.addresses[name] = address
        self._write_hosts()

    def cut(self, name: str) -> None:
        """Takes a machine off the network: nothing is refused, nothing answers."""
        self._ip("lab", f"link set v-{name} down")

    def join(self, name: str) -> None:
        """The network is back."""
        self._ip("lab", f"link set v-{name} up")

    def core_of(self, name: str) -> int:
        """The process id of a node's core."""

        def found() -> int:
            pid = self.processes[name].pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in children:
                if b"core_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
            return 0

        return eventually(found, what=f"the core of {name}")

    def folder(self, name: str) -> Path:
        """What the machine has as /var/lib/quorepo."""
        return self.root / name

    def log(self, name: str) -> str:
        path = self.root / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _inside(self, namespace: str, script: str, argv: Sequence[str]) -> list[str]:
        script = f"{script}exec {shlex.join(argv)}\n"
        enter = ["ip", "netns", "exec", self._prefix + namespace, "unshare", "-m", "-u"]
        return [*enter, "sh", "-c", script]

    def argv_on(self, name: str, argv: Sequence[str]) -> list[str]:
        """Runs `argv` on a machine."""
        script = (_ENTER + _BECOME).format(hosts=self._hosts, folder=self.folder(name), name=name)
        return self._inside(name, script, argv)

    def start(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts what a machine is for; its output goes to a log."""
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.argv_on(name, argv),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **(environment or {})}, cwd="/",
            )  # fmt: skip

    def serve(self, *names: str, failpoint: str = "") -> None:
        """Starts nodes with one command line."""
        environment = {"QUOREPO_FAILPOINTS": failpoint} if failpoint else None
        for name in names:
            argv = [str(QUOREPO), "serve", "--config", f"{STATE}/quorepo.toml"]
            self.start(name, argv, environment)

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)

    def ended(self, name: str) -> int:
        """Waits for the end of what runs on a machine; its exit code."""
        return self.processes.pop(name).wait(timeout=60)

    def run_on(
        self, name: str, argv: Sequence[str], *, check: bool = True, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a machine to its end."""
        return _run(self.argv_on(name, argv), check, timeout_s)

    def client(
        self, *argv: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command beside the machines: they are other machines to it."""
        script = _ENTER.format(hosts=self._hosts)
        return _run(self._inside("lab", script, argv), check, 60, environment)

    @contextlib.contextmanager
    def told_on_failure(self) -> Iterator[None]:
        """Adds the logs to what a failing body tells."""
        try:
            yield
        except BaseException as error:
            for name in self.names:
                error.add_note(f"--- {name}\n{self.log(name)[-4000:]}")
            raise

    def cli(
        self, endpoint: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """The `quorepo` command as an operator on another machine uses it."""
        return self.client(
            str(QUOREPO), "--endpoint", f"{endpoint}:7421", "--ca-file", str(self.ca()),
            "--token-file", str(self._given("secrets/admin-token")), *arguments,
            check=check, NO_COLOR="1",
        )  # fmt: skip

    def ca(self) -> Path:
        """The CA certificate of the cluster."""
        return self._given("tls/ca.pem")

    def url(self, name: str, path: str) -> str:
        """Where an admin pushes to and clones from."""
        token = self._given("secrets/admin-token").read_text().strip()
        return f"https://admin:{token}@{name}:7420/{path}"

    def git(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """git beside the machines, trusting the cluster's CA."""
        # The variable wins over http.sslCAInfo, and the test's own environment may have it set.
        environment = {**ENVIRONMENT, "GIT_SSL_CAINFO": str(self.ca())}
        return self.client("git", *arguments, check=check, **environment)

    def _given(self, path: str) -> Path:
        found = [p for name in self.names if (p := self.folder(name) / path).exists()]
        assert found, f"no machine has {path} yet"
        return found[0]

    def wait_ready(self, *names: str) -> None:
        """Until the nodes serve clients."""
        for name in names:

            def ready(name: str = name) -> bool:
                process = self.processes[name]
                assert process.poll() is None, f"{name} ended\n{self.log(name)[-4000:]}"
                answer = self.cli(name, "status", "-o", "json", check=False)
                if answer.returncode:
                    return False
                nodes = json.loads(answer.stdout)["nodes"]
                return any(node["name"] == name and node["ready"] for node in nodes)

            eventually(ready, timeout_s=60, what=f"{name} ready\n{self.log(name)[-3000:]}")


def _run(
    argv: Sequence[str],
    check: bool,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout_s, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    assert not check or process.returncode == 0, process.stdout + process.stderr
    return process
