"""Structured log lines: one line of `key=value` per event on standard error, in every process.

`extra={"fields": {...}}` adds fields. Values are quoted when they need it. Secrets must never be
passed in.
"""

from __future__ import annotations

import json
import logging
import sys
import time

__all__ = ["configure_logging", "fields"]


def fields(**values: object) -> dict[str, dict[str, object]]:
    """The `extra` of a log call: `log.info("pack staged", extra=fields(digest=…, bytes=…))`."""
    return {"fields": values}


class _LineFormatter(logging.Formatter):
    def __init__(self, process: str, node: str) -> None:
        super().__init__()
        self._constant = f"node={node} process={process}" if node else f"process={process}"

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        parts = [
            f"time={moment}.{int(record.msecs):03d}Z",
            f"level={record.levelname.lower()}",
            self._constant,
            f"logger={record.name}",
            f"msg={_quote(record.getMessage())}",
        ]
        extra = getattr(record, "fields", None)
        if isinstance(extra, dict):
            parts.extend(f"{key}={_quote(value)}" for key, value in extra.items())
        if record.exc_info:
            parts.append(f"exception={_quote(self.formatException(record.exc_info))}")
        return " ".join(parts)


def _quote(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    if text and all(c.isalnum() or c in "-_.:/@+" for c in text):
        return text
    return json.dumps(text, ensure_ascii=False)


def configure_logging(process: str, node: str = "", level: int = logging.INFO) -> None:
    """Sends all logging of this process to standard error as structured lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter(process, node))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
