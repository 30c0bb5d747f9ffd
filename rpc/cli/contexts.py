"""The file of contexts: which clusters this user knows, and which one commands talk to.

Owns `$XDG_CONFIG_HOME/quorepo/contexts.json` (mode 0600, written atomically). A context names files
of a token and of a CA; the token itself is never stored. Must not know any command.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from pathlib import Path

from quorepo.rpc.cli.failures import EXIT_USAGE, Failure

__all__ = ["Context", "Contexts", "contexts_path", "load_contexts"]

_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """One cluster. Paths are absolute; None: not set."""

    name: str
    endpoints: tuple[str, ...]
    token_file: str | None = None
    ca_file: str | None = None

    def document(self) -> dict[str, object]:
        """What is stored, and what `-o json` shows."""
        return {
            "endpoints": list(self.endpoints),
            "token_file": self.token_file,
            "ca_file": self.ca_file,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Contexts:
    """All contexts by name; `current` is empty when none is chosen."""

    contexts: dict[str, Context]
    current: str = ""

    def current_context(self) -> Context | None:
        """The chosen one; None when there is none."""
        return self.contexts.get(self.current)

    def get(self, name: str) -> Context:
        """Raises Failure, naming the nearest, when there is none of this name."""
        if name not in self.contexts:
            nearest = difflib.get_close_matches(name, self.contexts, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise Failure(
                f"no context {name!r}, nothing was tried{hint}",
                next_step="quorepo context list"
                if self.contexts
                else f"quorepo context add {name} --endpoint HOST:PORT --token-file FILE",
                exit_code=EXIT_USAGE,
            )
        return self.contexts[name]

    def with_context(self, context: Context, *, use: bool) -> Contexts:
        """One added or replaced; the first one is chosen at once."""
        if not _NAME.fullmatch(context.name):
            raise Failure(
                f"{context.name!r} is no name of a context: 1 to 64 letters, digits and . _ -, "
                "a letter or digit first; nothing was changed",
                exit_code=EXIT_USAGE,
            )
        chosen = context.name if use or not self.contexts else self.current
        return Contexts({**self.contexts, context.name: context}, chosen)

    def without(self, name: str) -> Contexts:
        """One removed; when it was the chosen one, none is chosen."""
        rest = {key: value for key, value in self.contexts.items() if key != self.get(name).name}
        return Contexts(rest, "" if self.current == name else self.current)

    def save(self) -> None:
        """Raises Failure when the file can't be written."""
        from quorepo.storage.layout import write_durably

        path = contexts_path()
        content = {
            "version": _VERSION,
            "current": self.current,
            "contexts": {name: entry.document() for name, entry in sorted(self.contexts.items())},
        }
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(path, (json.dumps(content, indent=2) + "\n").encode(), 0o600)
        except OSError as error:
            raise Failure(
                f"cannot write {str(path)!r}: {error.strerror}; the contexts were not changed",
                next_step="set XDG_CONFIG_HOME to a folder that can be written",
            ) from error


def contexts_path() -> Path:
    """Where the file is, whether it exists or not."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    return folder / "quorepo" / "contexts.json"


def load_contexts() -> Contexts:
    """All contexts; none when the file is not there.

    Raises:
        Failure: the file can't be read or is not what `save` writes.
    """
    path = contexts_path()
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r}")
        contexts = {
            name: Context(
                name,
                tuple(str(endpoint) for endpoint in entry["endpoints"]),
                entry["token_file"],
                entry["ca_file"],
            )
            for name, entry in content["contexts"].items()
        }
        return Contexts(contexts, content["current"])
    except (FileNotFoundError, NotADirectoryError):
        return Contexts({})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(
            f"cannot use the contexts in {str(path)!r} ({error}); nothing was tried",
            next_step=f"mv {path} {path}.damaged, then quorepo context add",
            exit_code=EXIT_USAGE,
        ) from error
