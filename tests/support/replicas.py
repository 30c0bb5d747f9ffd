"""What lies on the disks of a demo's nodes, judged by git and compared with each other."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from support.demo import Demo, DemoNode
from support.git import git, refs_of
from support.waiting import eventually

STORAGE = 1


def repository_id_of(demo: Demo, path: str) -> str:
    """Asks the directory's state on any node."""
    for node in demo.nodes.values():
        row = _query(node, 0, "SELECT repository_id FROM paths WHERE path = ?", path)
        if row:
            return str(row[0][0])
    raise AssertionError(f"no node knows {path!r}")


def packs_of(node: DemoNode, repository_id: str) -> list[str]:
    """The pack set of a repository as the node's state has it, sorted."""
    rows = _query(
        node, STORAGE, "SELECT hex(digest) FROM packs WHERE repository_id = ?", repository_id
    )
    return sorted(digest.lower() for (digest,) in rows)


def files_of(node: DemoNode, repository_id: str) -> list[str]:
    """The packs in the repository's folder whose both files are there, sorted."""
    folder = folder_of(node, repository_id) / "objects" / "pack"
    return sorted(
        path.stem.removeprefix("pack-")
        for path in folder.glob("pack-*.pack")
        if path.with_suffix(".idx").exists()
    )


def retired_of(node: DemoNode) -> set[str]:
    """Digests in retired/packs."""
    folder = node.data_dir / "groups" / str(STORAGE) / "retired" / "packs"
    return {path.stem.removeprefix("pack-") for path in folder.glob("*.pack")}


def quarantined_of(node: DemoNode) -> set[str]:
    """Digests of the packs that are staged."""
    folder = node.data_dir / "groups" / str(STORAGE) / "quarantine"
    return {path.stem for path in folder.glob("*.pack")}


def folder_of(node: DemoNode, repository_id: str) -> Path:
    return node.data_dir / "groups" / str(STORAGE) / "repositories" / f"{repository_id}.git"


def objects_of(node: DemoNode, repository_id: str) -> set[str]:
    """Every object that git finds in the folder, with its type and size."""
    output = git(
        "--git-dir", str(folder_of(node, repository_id)),
        "cat-file", "--batch-all-objects", "--batch-check", "--unordered",
    ).stdout  # fmt: skip
    return set(output.splitlines())


def check_replicas(demo: Demo, path: str, ask: str) -> set[str]:
    """All nodes have the same packs and objects, in the state and in the folder, and git's strict
    fsck accepts each, with the refs that node `ask` shows. Returns the objects.
    """
    repository_id = repository_id_of(demo, path)
    refs = refs_of(demo.url(ask, path))
    lines = [f"{oid} {name}\n" for name, oid in sorted(refs.items()) if name.startswith("refs/")
             and not name.endswith("^{}")]  # fmt: skip
    found: set[str] | None = None
    for node in demo.nodes.values():
        eventually(
            lambda node=node: (  # type: ignore[misc]
                packs_of(demo.nodes[ask], repository_id)
                == packs_of(node, repository_id)
                == files_of(node, repository_id)
            ),
            what=f"{node.name} has the packs of {ask}",
        )
        folder = folder_of(node, repository_id)
        (folder / "packed-refs").write_text("# pack-refs with: sorted \n" + "".join(lines))
        git("--git-dir", str(folder), "fsck", "--full", "--strict", "--no-dangling")
        objects = objects_of(node, repository_id)
        assert found is None or objects == found, f"{node.name} has other objects"
        found = objects
    assert found
    return found


def _query(node: DemoNode, group: int, sql: str, *values: str) -> list[tuple[str, ...]]:
    folder = node.data_dir / "groups" / str(group)
    current = (folder / "CURRENT").read_text().strip()
    connection = sqlite3.connect(f"file:{folder / current}?mode=ro", uri=True, timeout=5)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()
