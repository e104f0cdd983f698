"""Structured logs: one JSON line an event on stderr, control characters escaped, secrets redacted by pattern."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog

_SECRET = re.compile(
    r"(sk-[A-Za-z0-9_-]{8,}|hf_[A-Za-z0-9]{8,}|Bearer\s+\S+|-----BEGIN [A-Z ]*PRIVATE KEY-----)"
)


def redact(text: str) -> str:
    """Return `text` with everything that looks like a key replaced by `***`."""
    return _SECRET.sub("***", text)


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
    return event


class SteadyStream:
    """A text stream that lets a line go rather than fail: no service ends for want of room for its log."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._lost = 0

    def write(self, text: str) -> int:
        """Write `text`, before it how many lines were lost meanwhile."""
        lost = f'{{"event": "log_lines_lost", "lines": {self._lost}}}\n' if self._lost else ""
        try:
            self._stream.write(lost + text)
            self._stream.flush()
        except OSError:
            self._lost += 1
        else:
            self._lost = 0
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write is flushed."""


def configure(service: str, level: str = "INFO") -> None:
    """Send structlog and the standard library's records to stderr as JSON, bound to `service`."""
    stream = cast("TextIO", SteadyStream(sys.stderr))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_event,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
        ),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(stream=stream, level=logging.WARNING, format="%(name)s: %(message)s")


def logger(name: str) -> Any:
    """Return a logger whose lines carry `component=name`; it takes its settings when it is first used, not here."""
    return structlog.get_logger(component=name)
