"""Who is out of step with a majority: only what a majority of members says counts, once each."""

from __future__ import annotations

import pytest

from quorepo.cluster.divergence import diverged
from quorepo.internal.v1 import core_pb2


def node(name: str, *digests: str, counter: int = 7) -> core_pb2.CoreNodeVerification:
    """A node that tells of one repository, once per digest."""
    answer = core_pb2.CoreNodeVerification(node=name)
    for digest in digests:
        answer.fingerprints.add(
            group=1, repository_id="r", incarnation=1, counter=counter, digest=digest.encode()
        )
    return answer


@pytest.mark.parametrize(
    ("nodes", "members", "found"),
    [
        ([node("n1", "a"), node("n2", "a"), node("n3", "a")], 3, []),
        ([node("n1", "a"), node("n2", "a"), node("n3", "b")], 3, ["n3"]),
        ([node("n1", "a"), node("n2", "b")], 3, []),
        ([node("n1", "a"), node("n2", "a"), node("n3", "b", counter=6)], 3, []),
        ([node("n1", "a"), node("n2", "a"), node("n3", "b"), node("n4", "b")], 5, []),
    ],
    ids=["alike", "one of three", "no majority", "other revision", "half is no majority"],
)
def test_only_a_majority_at_the_same_revision_judges(
    nodes: list[core_pb2.CoreNodeVerification], members: int, found: list[str]
) -> None:
    assert sorted(diverged(nodes, members)) == found


def test_a_node_that_tells_a_thing_twice_counts_once() -> None:
    """It was found twice in what it sent, and two of its own words were a majority of three."""
    faults = diverged([node("n1", "a"), node("n2", "a"), node("n3", "b", "b")], 3)
    assert {name: len(of) for name, of in faults.items()} == {"n3": 1}
    assert not diverged([node("n1", "a"), node("n2", "b", "b")], 3)
