"""A group's folders in a temporary directory, and a store that is closed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.store import StateStore
from quorepo.storage.layout import GroupLayout


@pytest.fixture
def layout(tmp_path: Path) -> GroupLayout:
    layout = GroupLayout(tmp_path, 1)
    layout.create()
    return layout


@pytest.fixture
def store(layout: GroupLayout) -> Iterator[StateStore]:
    store = StateStore.open(layout)
    yield store
    store.close()


@pytest.fixture
def reader(layout: GroupLayout) -> Iterator[StateReader]:
    reader = StateReader(layout)
    yield reader
    reader.close()
