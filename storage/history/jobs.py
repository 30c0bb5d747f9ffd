"""The worker jobs `history_answer` and `history_stream`.

    history_answer   {repository, question, arguments} -> the answer
    history_stream   {repository, question, arguments, out} -> {}: parts in the new file `out`;
                     progress lines are the bytes of it that can be read

`repository` is `packs.describe`'s. Owns the caches that a worker keeps of the repositories that it
was asked about last.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quorepo.storage.errors import InvalidArgument, StorageFull
from quorepo.storage.history.questions import ANSWERS, answer
from quorepo.storage.history.source import Caches, History
from quorepo.storage.history.streams import STREAMS, PartWriter
from quorepo.storage.packs import PackSet

__all__ = ["run"]

_REPOSITORIES_CACHED_MAX = 4

_caches: OrderedDict[tuple[str, int, str], Caches] = OrderedDict()


def run(job: str, arguments: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Does one of the jobs above. Raises what the question raises; StorageFull."""
    question, details = str(arguments["question"]), arguments["arguments"]
    history = _history(arguments["repository"])
    if job == "history_answer":
        if question not in ANSWERS:
            raise InvalidArgument(f"unknown question {question!r}")
        return answer(history, question, details)
    out = Path(arguments["out"])
    try:
        with out.open("xb") as file:
            writer = PartWriter(file, flushed=lambda size: progress(str(size)))
            STREAMS[question](history, details, writer)
            writer.finish()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no room for the answer: {error.strerror}") from error
        raise
    return {}


def _history(repository: Mapping[str, Any]) -> History:
    key = (repository["data_dir"], repository["group"], repository["repository_id"])
    caches = _caches.setdefault(key, Caches())
    _caches.move_to_end(key)
    if len(_caches) > _REPOSITORIES_CACHED_MAX:
        _caches.popitem(last=False)
    return History(PackSet.from_description(repository), caches)
