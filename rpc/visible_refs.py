"""Which refs a caller of the API sees: `git.hidden_refs` are for admins alone.

Owns what a view without them is, and the refusal to change them. Must not know any service. A
hidden ref is not there for others: not by its name, not in a list, not in a count and not as HEAD.
What only such a ref reaches is still an object of the repository, which the API shows by its id;
git clients do not get it (`storage/git/reachability.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from quorepo.rpc.auth import Identity
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.git_settings import is_hidden
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import PermissionDenied
from quorepo.storage.git.advertise import RefsView
from quorepo.storage.packs import PackSet

__all__ = ["check_not_hidden", "hidden_from", "shown_to"]


def hidden_from(edge: EdgeContext, identity: Identity) -> tuple[bytes, ...]:
    """The starts of the ref names that a caller does not see; empty: it sees all."""
    return () if identity.role == "admin" else edge.config.git.hidden_prefixes


def shown_to(edge: EdgeContext, identity: Identity, view: RepositoryView) -> RepositoryView:
    """The same picture as this caller may see it. Reads nothing."""
    hidden = hidden_from(edge, identity)
    return _Visible(view, hidden) if hidden else view


def check_not_hidden(edge: EdgeContext, identity: Identity, names: Iterable[bytes]) -> None:
    """Before a change of refs; whether such a ref exists is not told.

    Raises:
        PermissionDenied: one of the names is hidden from the caller.
    """
    hidden = hidden_from(edge, identity)
    for name in names:
        if is_hidden(name, hidden):
            raise PermissionDenied(
                f"deny updating a hidden ref: {name[:200].decode('utf-8', 'backslashreplace')!r} "
                "is one of git.hidden_refs; nothing was changed",
                next_step="use a token with the role 'admin', or another name",
            )


class _Visible(RepositoryView):
    """A view without hidden refs; what it reads it reads through the whole one, which keeps it."""

    def __init__(self, whole: RepositoryView, hidden: tuple[bytes, ...]) -> None:
        self.__dict__.update(whole.__dict__)
        self._whole = whole
        self._without = hidden
        self.refs = _Refs(whole.refs, hidden)

    @property
    def head(self) -> bytes:
        head = self._whole.head
        return b"" if is_hidden(head, self._without) else head

    @property
    def packs(self) -> PackSet:
        return self._whole.packs

    @property
    def knows_refs(self) -> bool:
        return self._whole.knows_refs and self._whole.knows_git_view

    def refs_view(self) -> RefsView:
        return self._whole.git_view()

    def git_view(self) -> RefsView:
        return self._whole.git_view()


class _Refs(Mapping[bytes, bytes]):
    """Refs by name, in the order of the whole mapping."""

    def __init__(self, whole: Mapping[bytes, bytes], hidden: tuple[bytes, ...]) -> None:
        self._whole = whole
        self._hidden = hidden

    def __getitem__(self, name: bytes) -> bytes:
        if is_hidden(name, self._hidden):
            raise KeyError(name)
        return self._whole[name]

    def __iter__(self) -> Iterator[bytes]:
        return (name for name in self._whole if not is_hidden(name, self._hidden))

    def __len__(self) -> int:
        return sum(1 for _ in self)
