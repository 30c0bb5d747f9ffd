"""Names and durable moves of files in the data directory of one node.

    <data_dir>/groups/<group>/
      CURRENT, state.<generation>.sqlite3      the state machine's (cluster/state)
      repositories/<id>.git/                   bare repositories that git itself can open
          objects/pack/pack-<sha256>.pack, .idx
      quarantine/<sha256>.pack, .idx           verified and durable, invisible to readers
      quarantine/upload-<uuid>.tmp             a pack that is still coming in
      retired/<id>.git/                        deleted repositories
      retired/packs/pack-<sha256>.pack, .idx   packs that consolidation or a prune removed

Owns where a file lies and that a move is durable when the call returns. Must not know what a pack
holds, nor who decided on a move. Every function is idempotent: apply repeats them after a crash.
OSError passes through; apply turns it into the end of the process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from quorepo.storage.failpoints import failpoint
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.syncing import fsync_dirs, fsync_together

__all__ = [
    "GroupLayout",
    "ensure_repository",
    "fsync_dir",
    "fsync_file",
    "held_packs",
    "new_repository_id",
    "promote_pack",
    "repository_packs",
    "retire_pack",
    "retire_repository",
    "retired_packs",
    "store_pack",
    "sync_packs",
    "write_durably",
]

_SYNCED_TOGETHER = 32  # packs; as many descriptors are open twice
DIGEST_BYTES = 32  # packs are named by SHA-256, whatever the object format


def new_repository_id() -> str:
    """A fresh repository id: 32 lowercase hex digits, never reused."""
    return uuid.uuid4().hex


class GroupLayout:
    """Where the files of one group lie on this node."""

    __slots__ = (
        "damaged",
        "data_dir",
        "group",
        "quarantine",
        "repositories",
        "retired",
        "retired_pack_folder",
        "state_dir",
    )

    def __init__(self, data_dir: Path, group: int) -> None:
        self.data_dir = Path(data_dir)
        self.group = group
        self.state_dir = self.data_dir / "groups" / str(group)
        self.quarantine = self.state_dir / "quarantine"
        self.retired = self.state_dir / "retired"
        self.damaged = self.state_dir / "damaged"  # made when there is something
        self.retired_pack_folder = self.retired / "packs"
        self.repositories = self.state_dir / "repositories"

    def __repr__(self) -> str:
        return f"GroupLayout({str(self.data_dir)!r}, {self.group})"

    def repository(self, repository_id: str) -> Path:
        """The bare repository of that id."""
        if not repository_id.isalnum() or not repository_id.isascii():
            # An id becomes a folder name: it must never be able to point elsewhere.
            raise ValueError(f"repository id {repository_id!r} is not alphanumeric")
        return self.repositories / f"{repository_id}.git"

    def pack_paths(self, repository_id: str, digest: bytes) -> tuple[Path, Path]:
        """The .pack and .idx of a promoted pack."""
        folder = self.repository(repository_id) / "objects" / "pack"
        name = f"pack-{_checked_hex(digest)}"
        return folder / f"{name}.pack", folder / f"{name}.idx"

    def quarantine_paths(self, digest: bytes) -> tuple[Path, Path]:
        """The .pack and .idx of a staged pack."""
        name = _checked_hex(digest)
        return self.quarantine / f"{name}.pack", self.quarantine / f"{name}.idx"

    def retired_pack_paths(self, digest: bytes) -> tuple[Path, Path]:
        """The .pack and .idx of a pack that a transaction removed from its repository."""
        name = f"pack-{_checked_hex(digest)}"
        folder = self.retired_pack_folder
        return folder / f"{name}.pack", folder / f"{name}.idx"

    def pack_paths_elsewhere(self, digest: bytes) -> list[tuple[Path, Path]]:
        """Where a pack of a repository may be before it came there, and after it was removed."""
        return [self.retired_pack_paths(digest), self.quarantine_paths(digest)]

    def new_upload(self) -> Path:
        """A fresh name for a pack that is about to come in; nothing is created."""
        return self.quarantine / f"upload-{uuid.uuid4().hex}.tmp"

    def create(self) -> None:
        """Creates the folders of the group, durably."""
        groups = self.state_dir.parent
        for folder in (self.quarantine, self.retired_pack_folder, self.repositories):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.retired, self.state_dir, groups, self.data_dir):
            fsync_dir(folder)


def fsync_dir(path: Path) -> None:
    """Makes the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(file: int | Path) -> None:
    """Makes the bytes of a file durable; `file` is a descriptor or a path."""
    if isinstance(file, int):
        os.fsync(file)
        return
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces the file at `path` with `data`: write, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write_synced(temporary, data, mode)
        failpoint("layout.write.before_rename")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    failpoint("layout.write.before_dir_fsync")
    fsync_dir(path.parent)


def ensure_repository(layout: GroupLayout, repository_id: str, object_format: ObjectFormat) -> None:
    """Creates a bare repository that git, pygit2 and dulwich open, durably. It holds no refs.

    A retired one of this id comes back: a deletion that is replayed retires it again. The refs
    live in the state machine; HEAD here only makes the folder a repository.
    """
    repository = layout.repository(repository_id)
    if repository.is_dir():
        # It may have been renamed into place by a process that died before the fsync.
        fsync_dir(layout.repositories)
        return
    retired = layout.retired / repository.name
    if retired.is_dir():
        # The state went back behind its deletion: what is replayed needs the packs that are there.
        failpoint("layout.unretire.before_rename")
        retired.rename(repository)
        fsync_dir(layout.repositories)
        fsync_dir(layout.retired)
        return
    building = layout.repositories / f"{repository_id}.tmp"
    if building.exists():
        shutil.rmtree(building)
    for folder in ("refs/heads", "refs/tags", "objects/pack", "objects/info"):
        (building / folder).mkdir(mode=0o700, parents=True)
    _write_synced(building / "HEAD", b"ref: refs/heads/main\n", 0o600)
    _write_synced(building / "config", _git_config(object_format), 0o600)
    for folder in ("refs/heads", "refs", "objects/pack", "objects", "."):
        fsync_dir(building / folder)
    failpoint("layout.repository.before_rename")
    building.rename(repository)
    failpoint("layout.repository.before_dir_fsync")
    fsync_dir(layout.repositories)


def promote_pack(layout: GroupLayout, repository_id: str, digest: bytes) -> None:
    """Moves a staged pack into its repository: pack, then idx, then fsync of both folders.

    Already there is fine. When another repository of the group took the staged file (the same
    pack was pushed to both), its file is linked. Raises FileNotFoundError when this node has the
    pack nowhere.
    """
    targets = layout.pack_paths(repository_id, digest)
    for source, target in zip(layout.quarantine_paths(digest), targets, strict=True):
        failpoint("layout.promote.before_rename")
        if target.exists():
            source.unlink(missing_ok=True)
            continue
        try:
            source.rename(target)
        except FileNotFoundError:
            _link_from_elsewhere(layout, target)
    failpoint("layout.promote.before_dir_fsync")
    # Also when nothing moved: an earlier attempt may have died before its fsync.
    fsync_dirs(targets[0].parent, layout.quarantine)


def store_pack(
    layout: GroupLayout, repository_id: str, digest: bytes, pack: bytes, index: bytes
) -> None:
    """Writes a pack into its repository, whole, and not durably yet: `sync_packs` does that.

    Until then whoever calls must be able to call again after a power cut. Over files of the same
    names: they may be what such a cut left of them.
    """
    targets = layout.pack_paths(repository_id, digest)
    for target, data in zip(targets, (pack, index), strict=True):
        temporary = layout.quarantine / f"stage-{uuid.uuid4().hex}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(data)
            failpoint("layout.store.before_rename")
            temporary.rename(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sync_packs(layout: GroupLayout, packs: Sequence[tuple[str, bytes]]) -> None:
    """Makes packs (repository id, digest) that `store_pack` wrote durable, names included."""
    folders = {layout.quarantine: None}
    for start in range(0, len(packs), _SYNCED_TOGETHER):
        descriptors: list[int] = []
        try:
            for repository_id, digest in packs[start : start + _SYNCED_TOGETHER]:
                paths = layout.pack_paths(repository_id, digest)
                folders[paths[0].parent] = None
                for path in paths:
                    # Moved away since: durably, by whoever did it.
                    with contextlib.suppress(FileNotFoundError):
                        descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            if descriptors:
                fsync_together(descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    failpoint("layout.store.before_dir_fsync")
    fsync_dirs(*folders)


def retire_repository(layout: GroupLayout, repository_id: str) -> None:
    """Moves the folder of a deleted repository into retired/. Gone already is fine."""
    source = layout.repository(repository_id)
    target = layout.retired / source.name
    failpoint("layout.retire.before_rename")
    if source.exists():
        if target.exists():
            # Ids are never reused: both are of the same repository, and either may have packs that
            # the other lacks.
            _move_packs(target, source)
            shutil.rmtree(target)
        source.rename(target)
    failpoint("layout.retire.before_dir_fsync")
    fsync_dir(layout.retired)
    fsync_dir(layout.repositories)


def _move_packs(from_repository: Path, to_repository: Path) -> None:
    target = to_repository / "objects" / "pack"
    for path in sorted((from_repository / "objects" / "pack").glob("pack-*")):
        if not (target / path.name).exists():
            path.rename(target / path.name)
    fsync_dir(target)


def retire_pack(layout: GroupLayout, repository_id: str, digest: bytes) -> None:
    """Moves a pack out of its repository into retired/packs. Moved already is fine.

    Whoever has it open goes on reading; whoever opens it later finds it there. The same pack may
    have come from another repository of the group before.
    """
    sources = layout.pack_paths(repository_id, digest)
    if not layout.retired_pack_folder.is_dir():
        layout.create()  # made by a version that had no such folder
    for source, target in zip(sources, layout.retired_pack_paths(digest), strict=True):
        failpoint("layout.retire_pack.before_rename")
        if not source.exists():
            continue
        source.rename(target)  # over an equal file
        source.unlink(missing_ok=True)  # a rename between two links of one file does nothing
    failpoint("layout.retire_pack.before_dir_fsync")
    fsync_dir(layout.retired_pack_folder)
    folder = sources[0].parent
    if folder.is_dir():  # not when the repository was retired as well
        fsync_dir(folder)
        # What was derived from it (storage/git/commit_graph.py) is not needed any more.
        for derived in (folder.parent / "info").glob(f"quorepo-{digest.hex()}.*"):
            derived.unlink(missing_ok=True)


def retired_packs(layout: GroupLayout) -> set[bytes]:
    """Digests of the packs in retired/packs, for the sweeper: it may unlink one (both files, the
    index first) once retention is over for every row of `removed_packs` that names it, and neither
    the pack table nor the journal does; take it out of HeldPacks before.
    """
    if not layout.retired_pack_folder.is_dir():
        return set()
    return _named_packs(layout.retired_pack_folder)


def repository_packs(layout: GroupLayout) -> list[tuple[str, bytes]]:
    """(repository id, digest) of all pack files in repositories of the group, halves too."""
    found = []
    for folder in sorted(layout.repositories.glob("*.git/objects/pack")):
        repository_id = folder.parent.parent.name.removesuffix(".git")
        found += [(repository_id, digest) for digest in sorted(_named_packs(folder))]
    return found


def _named_packs(folder: Path) -> set[bytes]:
    """Digests that have a .pack or an .idx in `folder`."""
    packs, indexes = _digests(folder, "pack-")
    return packs | indexes


def held_packs(layout: GroupLayout) -> set[bytes]:
    """Digests of the packs whose both files are in quarantine, in a repository of the group, or
    among those that were removed and are kept.
    """
    held = _complete_pairs(layout.quarantine, "")
    if layout.retired_pack_folder.is_dir():
        held |= _complete_pairs(layout.retired_pack_folder, "pack-")
    for folder in layout.repositories.glob("*.git/objects/pack"):
        held |= _complete_pairs(folder, "pack-")
    return held


def _complete_pairs(folder: Path, prefix: str) -> set[bytes]:
    """Digests that have both a .pack and an .idx in `folder`."""
    packs, indexes = _digests(folder, prefix)
    return packs & indexes


def _digests(folder: Path, prefix: str) -> tuple[set[bytes], set[bytes]]:
    """The digests of all .pack and of all .idx files in `folder`."""
    found: dict[str, set[bytes]] = {".pack": set(), ".idx": set()}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            digests = found.get(suffix)
            if digests is None or not stem.startswith(prefix):
                continue
            hexadecimal = stem[len(prefix) :]
            if len(hexadecimal) == 2 * DIGEST_BYTES:
                try:
                    digests.add(bytes.fromhex(hexadecimal))
                except ValueError:
                    continue  # a file of somebody else
    return found[".pack"], found[".idx"]


def _link_from_elsewhere(layout: GroupLayout, target: Path) -> None:
    """Links the file of that name from where a pack may be kept: removed from a repository, in
    another one, or in a deleted one.
    """
    removed = layout.retired_pack_folder / target.name
    if removed.exists():
        os.link(removed, target)
        fsync_file(target)
        return
    for parent in (layout.repositories, layout.retired):
        for candidate in parent.glob(f"*.git/objects/pack/{target.name}"):
            os.link(candidate, target)
            fsync_file(target)  # it may be one that `store_pack` wrote there a moment ago
            return
    raise FileNotFoundError(
        f"pack file {target.name!r} is neither staged nor in any repository of group {layout.group}"
    )


def _git_config(object_format: ObjectFormat) -> bytes:
    if object_format is ObjectFormat.SHA1:
        return b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
    return (
        b"[core]\n\trepositoryformatversion = 1\n\tfilemode = true\n\tbare = true\n"
        b"[extensions]\n\tobjectformat = sha256\n"
    )


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    """Creates a file with `data` and makes its bytes durable (not its name)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    with open(descriptor, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        failpoint("layout.write.before_fsync")
        os.fsync(descriptor)


def _checked_hex(digest: bytes) -> str:
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a pack digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    return digest.hex()
