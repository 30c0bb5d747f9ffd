"""What is derived from a large pack is made by the node itself, after a push."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest import mock

from support.edge import edge_config, running_edge
from support.git import WorkTree
from support.waiting import eventually

from quorepo.rpc import derivation
from quorepo.rpc.derivation import Derivation


def test_a_pushed_pack_is_given_its_table_in_every_repository_and_a_fetch_hit_is_counted(
    tmp_path: Path, work: WorkTree
) -> None:
    data = tmp_path / "node" / "data"
    data.parent.mkdir()
    for number in range(3):
        work.commit(f"commit {number}")
    with (
        mock.patch.object(derivation, "CHANGES_OBJECTS_MIN", 1),
        running_edge(edge_config(data)) as server,
    ):

        async def start() -> asyncio.Task[None]:
            return asyncio.create_task(Derivation(server.edge).run())

        async def stop() -> None:
            running.cancel()
            await asyncio.wait({running})

        running = server.do(start())
        work.git("push", "--quiet", server.url("team/app"), "HEAD:refs/heads/main")
        done = server.edge.metrics.derivations.labels("done")
        eventually(lambda: done._value.get() == 1, what="a table was made")
        [table] = data.glob("groups/1/repositories/*/objects/info/quorepo-*.changes")
        assert table.stat().st_size
        for name in ("one", "two"):
            work.git("clone", "--quiet", server.url("team/app"), str(tmp_path / name))
        answers = server.edge.metrics.answers
        assert answers.labels("built")._value.get() == 1
        assert answers.labels("hit")._value.get() == 1
        # The same pack in another repository: every repository has files of its own.
        work.git("push", "--quiet", server.url("team/fork"), "HEAD:refs/heads/main")
        eventually(lambda: done._value.get() == 2, what="a table of the fork was made")
        tables = list(data.glob("groups/1/repositories/*/objects/info/quorepo-*.changes"))
        assert len(tables) == 2
        assert tables[0].name == tables[1].name
        server.do(stop())
