"""A git client as a user has it, but blind to this machine's configuration."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "A U Thor",
    "GIT_AUTHOR_EMAIL": "author@example.com",
    "GIT_COMMITTER_NAME": "C O Mitter",
    "GIT_COMMITTER_EMAIL": "committer@example.com",
}


def git(
    *arguments: str,
    cwd: Path | None = None,
    check: bool = True,
    timeout_s: float = 60.0,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs git; output as text (undecodable bytes survive as surrogates)."""
    process = subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        env={**ENVIRONMENT, **(environment or {})},
        input=None if stdin is None else stdin.decode(errors="surrogateescape"),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout_s,
        check=False,
    )
    if check and process.returncode != 0:
        raise AssertionError(
            f"git {' '.join(arguments)} exited {process.returncode}\n"
            f"{process.stdout}{process.stderr}"
        )
    return process


def through_the_api(endpoint: str, token: str) -> dict[str, str]:
    """Environment of a git whose ssh is `quorepo transfer`, to the gRPC API of one node."""
    return {
        "GIT_SSH_COMMAND": shlex.join(
            [sys.executable, "-m", "quorepo", "--endpoint", endpoint, "transfer"]
        ),
        "QUOREPO_TOKEN": token,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


class WorkTree:
    """A small non-bare repository to push from."""

    def __init__(self, path: Path, branch: str = "main") -> None:
        self.path = path
        git("init", "--quiet", f"--initial-branch={branch}", str(path))

    def git(
        self,
        *arguments: str,
        check: bool = True,
        timeout_s: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return git(
            *arguments, cwd=self.path, check=check, timeout_s=timeout_s, environment=environment
        )

    def commit(self, message: str, files: Mapping[str, str | bytes] | None = None) -> str:
        """Writes `files`, commits everything, returns the commit's id."""
        for name, content in (files or {"file.txt": message + "\n"}).items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", f"--message={message}")
        return self.head()

    def head(self) -> str:
        return self.git("rev-parse", "HEAD").stdout.strip()


def refs_of(url: str) -> dict[str, str]:
    """What `git ls-remote` shows, as name to id."""
    lines = git("ls-remote", url).stdout.splitlines()
    return {name: oid for oid, name in (line.split("\t") for line in lines)}


def clone(url: str, target: Path, *options: str) -> Path:
    """Clones and checks what came with `git fsck --full --strict`."""
    git(*_before(options), "clone", "--quiet", *_after(options), url, str(target))
    git("fsck", "--full", "--strict", "--no-progress", cwd=target)
    return target


def _before(options: tuple[str, ...]) -> list[str]:
    """`-c key=value` goes before the subcommand."""
    return [
        part
        for option in options
        if "=" in option and not option.startswith("-")
        for part in ("-c", option)
    ]


def _after(options: tuple[str, ...]) -> list[str]:
    return [option for option in options if option.startswith("-")]
