"""The negotiation of a fetch: which haves are common, whether they suffice, where history is cut.

Reads objects, writes nothing, knows no wire format. The wants are checked against the visible
tips here, so nothing may be sent for a request that did not pass through `negotiate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quorepo.storage.git.commits import CommitReader, existing
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.reachability import VisibleObjects, check_wants
from quorepo.storage.git.shallow import client_shallow, plan_shallow
from quorepo.storage.git.walk import wants_reach_common
from quorepo.storage.packs import PackSet

__all__ = ["negotiate", "negotiate_at_once"]

# What is looked for in how many packs: beyond it a worker does it.
_LOOKUPS_MAX = 20_000


def negotiate(
    reader: CommitReader,
    request: FetchRequest,
    tips: Sequence[bytes],
    deepen_not: Sequence[bytes] = (),
    visible: VisibleObjects | None = None,
) -> Negotiation:
    """Raises NotFound for a want that no tip reaches, InvalidArgument for an impossible depth.

    `visible`, when given, is that of the same tips.
    """
    check_wants(reader, request.wants, tips, visible)
    wants = reader.roots(request.wants)
    excluded = reader.roots(deepen_not).commits
    plan = plan_shallow(reader, request, wants, excluded)
    common = existing(reader.objects, request.haves)
    ready = False
    if common and request.wants and not request.done and not request.wait_for_done:
        grafts = {*client_shallow(reader, request), *plan.shallow}
        common_commits = reader.roots(common).commits
        ready = wants_reach_common(reader, wants.commits, common_commits, grafts)
    return Negotiation(tuple(common), ready, plan.shallow, plan.unshallow)


def negotiate_at_once(
    objects: PackSet, request: FetchRequest, tips: Iterable[bytes]
) -> Negotiation | None:
    """What `negotiate` finds, where that takes no walk and no object that is read; else None.

    So it is for most clones, and for a client that is done: all that it wants are `tips`, and its
    history and ours are cut off nowhere.
    """
    if request.deepens or request.client_shallow or not (request.done or not request.haves):
        return None
    lookups = len(request.wants) + len(request.haves)
    if lookups * len(objects.packs) > _LOOKUPS_MAX:
        return None
    if not set(tips).issuperset(request.wants) or any(w not in objects for w in request.wants):
        return None
    return Negotiation(tuple(existing(objects, request.haves)))
