"""Runs `quorepo` commands against a demo and prints them with what they said, for the manuals."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.demo import Demo

__all__ = ["Transcript"]


class Transcript:
    """Everything goes to standard output as it comes; folders of the demo are shortened."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo

    def note(self, text: str) -> None:
        """What happens beside the commands."""
        print(f"# {text}", flush=True)

    def run(self, *arguments: str, node: str | None = None, code: int = 0) -> str:
        """One command, asked of a node. AssertionError: it ended with another code."""
        done = self._demo.cli(*arguments, node=node, check=False)
        shown = " ".join(arguments)
        text = f"$ quorepo {shown}\n{done.stderr}{done.stdout.rstrip()}\n(exit {done.returncode})"
        print(text.replace(str(self._demo.directory), "/srv/demo") + "\n", flush=True)
        assert done.returncode == code, f"{shown} ended with {done.returncode}"
        return done.stdout
