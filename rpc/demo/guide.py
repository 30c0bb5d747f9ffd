"""What the demo prints once it is ready: things to try, each a line to copy and paste.

Owns the words only.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from quorepo.rpc.demo.layout import DemoLayout, DemoNode

__all__ = ["guide", "quorepo_command"]


def guide(layout: DemoLayout, pids: Sequence[int], leader: str, seconds: float) -> str:
    """The text; `leader` is the node that leads the storage group now, empty when not known."""
    token = layout.admin_token
    first = layout.nodes[0]
    other = layout.nodes[1 % len(layout.nodes)]
    elsewhere = "from another node" if len(layout.nodes) > 1 else "again"
    urls = "\n".join(
        f"    {node.name}  http://admin:{token}@{node.http}/NAME.git" for node in layout.nodes
    )
    command = f"{quorepo_command()} --token-file {_shown(layout.token_path)}"
    stays = "its data is removed" if layout.ephemeral else "the data stays"
    return f"""
quorepo demo: {len(layout.nodes)} node(s) ready after {seconds:.1f} s

  Push to and clone from any node; NAME is any path, a push creates it:
{urls}

  Push something:
    git init -q -b main hello && cd hello
    git -c user.name=demo -c user.email=demo@example.com commit -q --allow-empty -m "first commit"
    git push http://admin:{token}@{first.http}/hello.git main

  Clone it {elsewhere}:
    git clone http://admin:{token}@{other.http}/hello.git hello-from-{other.name}

  Look at the cluster:
    {command} --endpoint {first.grpc} status
{_kill_the_leader(layout, pids, leader, command)}{_add_a_node(layout, command)}
  Data, configuration, logs and tokens: {_shown(layout.root)}
  Ctrl-C stops every node; {stays}.
"""


def _kill_the_leader(layout: DemoLayout, pids: Sequence[int], leader: str, command: str) -> str:
    names = [node.name for node in layout.nodes]
    if len(names) < 3 or leader not in names:
        return ""
    position = names.index(leader)
    victim = layout.nodes[position]
    survivor: DemoNode = layout.nodes[(position + 1) % len(names)]
    url = f"http://admin:{layout.admin_token}@{survivor.http}/hello.git"
    return f"""
  Kill the leader ({leader} now) and see it go on:
    kill -9 {pids[position]}
    git -c user.name=demo -c user.email=demo@example.com commit -q --allow-empty -m "second"
    git push {url} main
    {command} --endpoint {survivor.grpc} status

  Bring it back; it catches up by itself:
    {shlex.join(victim.argv)} &
"""


def _add_a_node(layout: DemoLayout, command: str) -> str:
    if not layout.spares:
        return ""
    first = layout.nodes[0]
    lines = "\n".join(
        f"    {shlex.join(node.argv)} &\n"
        f"    {command} --endpoint {first.grpc} node add {node.name} --peer-address {node.peer} "
        "--wait 60 --yes"
        for node in layout.spares
    )
    return f"""
  Add nodes (the demo neither starts nor stops them, so do it yourself; `kill %1` ends the first):
{lines}
    {command} --endpoint {first.grpc} node list
"""


def quorepo_command() -> str:
    """How to call this very program from the shell that the demo runs in."""
    script = Path(sys.executable).parent / "quorepo"
    found = shutil.which("quorepo")
    if found is not None and Path(found) == script:
        return "quorepo"
    if script.exists():
        return _shown(script)
    return f"{shlex.quote(sys.executable)} -m quorepo"


def _shown(path: Path) -> str:
    """Relative to the working directory when that is shorter; quoted for the shell."""
    try:
        relative = path.relative_to(Path.cwd())
    except ValueError:
        return shlex.quote(str(path))
    return shlex.quote(str(relative) if relative.parts else ".")
