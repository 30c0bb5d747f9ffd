"""Verifying what a push wants refs to point to, in a worker process.

Owns what is asked of the worker and what its answer becomes in the log. Must not know the wire
protocol; what is checked is decided in `quorepo.storage.ingest`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quorepo.internal.v1 import log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.push_checks import Change
from quorepo.rpc.reads import GROUP_STORAGE
from quorepo.rpc.transactions import Target, Verified
from quorepo.storage.errors import Unavailable
from quorepo.storage.ingest import IngestResult, check_tips
from quorepo.storage.jobs import ingest
from quorepo.storage.layout import new_repository_id
from quorepo.storage.packs import PackSet, describe

__all__ = ["Verifier", "pack_addition"]


class Verifier:
    """Verifies one push: once with its upload, and again when objects were pruned since."""

    def __init__(
        self, edge: EdgeContext, changes: Sequence[Change], on_progress: Callable[[str], None]
    ) -> None:
        self._edge = edge
        self._tips = [(c.name, c.new) for c in changes if c.new is not None]
        self._on_progress = on_progress
        self._ingested: IngestResult | None = None
        self.warnings: Sequence[str] = ()  # of the object checks, for the client to see

    async def verify_upload(self, target: Target, upload: Path) -> Verified:
        """Turns an upload into a verified, durable pack in quarantine. The upload is gone then.

        Raises:
            CorruptPack, LimitExceeded, StorageFull: in git's words; nothing is left behind.
            Unavailable: the workers are busy.
        """
        self._ingested = await ingest(
            self._edge.workers,
            upload,
            self._describe(target),
            self._tips,
            self._edge.config.limits.worker_timeout_s,
            self._on_progress,
            self._edge.config.git.fsck_policy(target.path),
        )
        if self._ingested is None:
            return Verified(target)
        self.warnings = self._ingested.warnings
        return Verified(target, [pack_addition(self._ingested)])

    async def verify(self, target: Target) -> Verified:
        """Verifies again, against what the target holds now; or for the first time without a pack.

        Raises:
            CorruptPack: an object is missing, or a branch would not point to a commit.
        """
        if self._ingested is not None:
            return await self._verify_staged(target, self._ingested)

        def check() -> None:
            view = target.view
            packs = PackSet((), target.object_format) if view is None else view.packs
            check_tips(packs, self._tips)

        await self._edge.reads.in_thread(check)
        return Verified(target)

    async def _verify_staged(self, target: Target, ingested: IngestResult) -> Verified:
        """The pack is complete, in quarantine or here: it goes through all checks a second time."""
        layout = self._edge.reads.layout(_group(target))
        staged, _index = layout.quarantine_paths(ingested.digest)
        upload = layout.new_upload()
        try:
            if ingested.pack:
                await asyncio.to_thread(upload.write_bytes, ingested.pack)
            else:
                os.link(staged, upload)
            return await self.verify_upload(target, upload)
        except FileNotFoundError as error:  # the same pack, pushed elsewhere, took it along
            raise Unavailable("the pack is not staged any more", next_step="push again") from error
        finally:
            upload.unlink(missing_ok=True)

    def _describe(self, target: Target) -> dict[str, Any]:
        if target.view is not None:
            return target.view.describe()
        # Nothing is read from a repository without packs: which id it will get does not matter.
        layout = self._edge.reads.layout(_group(target))
        return describe(layout, new_repository_id(), (), target.object_format)


def _group(target: Target) -> int:
    return GROUP_STORAGE if target.view is None else target.view.group


def pack_addition(result: IngestResult) -> log_pb2.PackAddition:
    """A verified pack in the words of the log."""
    return log_pb2.PackAddition(
        digest=result.digest,
        index_digest=result.index_digest,
        pack_bytes=result.pack_bytes,
        index_bytes=result.index_bytes,
        object_count=result.object_count,
        thin_bytes=result.thin_bytes,
        thin_object_count=result.thin_object_count,
        encoding=log_pb2.PACK_ENCODING_INLINE if result.pack else log_pb2.PACK_ENCODING_FILE,
        pack=result.pack,
        index=result.index,
    )
