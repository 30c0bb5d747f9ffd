"""What an operation expects of its branch, compared with what the branch is.

Owns the comparison and its refusal; apply compares once more. Must not know operations.
"""

from __future__ import annotations

from quorepo.rpc.grpc.errors import ReferencesMismatch
from quorepo.rpc.objects import parse_oid
from quorepo.rpc.reads import RepositoryView
from quorepo.v1 import errors_pb2, operation_pb2

__all__ = ["expected_value", "mismatch"]


def expected_value(
    view: RepositoryView,
    ref: bytes,
    actual: bytes | None,
    expected: operation_pb2.BranchExpectation,
) -> bytes | None:
    """What the transaction has to compare with. Raises ReferencesMismatch."""
    if expected.WhichOneof("kind") != "oid":
        return actual
    wanted = parse_oid(view, expected.oid) if expected.oid else None
    wanted = None if wanted == view.object_format.zero else wanted
    if wanted != actual:
        raise mismatch(ref, wanted, actual)
    return wanted


def mismatch(ref: bytes, wanted: bytes | None, actual: bytes | None) -> ReferencesMismatch:
    """The refusal: the ref is not what was expected."""
    return ReferencesMismatch(
        [
            errors_pb2.ReferenceMismatch.Mismatch(
                name=ref,
                expected_oid=(wanted or b"").hex(),
                actual_oid=(actual or b"").hex(),
            )
        ]
    )
