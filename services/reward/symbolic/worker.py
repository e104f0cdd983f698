"""What runs in a symbolic process: one question at a time, in three announced phases, until it is killed."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any, Final, Literal

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

Phase = Literal["gold", "answer", "compare"]
Reply = tuple[Literal["phase"], Phase] | tuple[Literal["done"], bool | None, int]
"""(`done`, equal or None where the gold cannot be read, resident memory in MiB). Before the first one comes READY."""
READY: Final = "ready"

MEMORY_BYTES: Final = 2 * 1024**3
_LATEX: Final = [
    LatexExtractionConfig(
        try_extract_without_anchor=True,
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="last", equations=False
        ),
    )
]  # fmt: skip


def serve(pipe: Connection) -> None:
    """Answer (gold, answer) pairs from `pipe`; ends when it closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    pipe.send(READY)
    while True:
        try:
            gold, answer = pipe.recv()
        except EOFError:
            return
        equal = _decide(pipe, gold, answer)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        pipe.send(("done", equal, peak))


def _decide(pipe: Connection, gold: str, answer: str) -> bool | None:
    """Return whether they are equal. What fails on the answer's side is a wrong answer; on the gold's, None."""
    pipe.send(("phase", "gold"))
    try:
        wanted = _gold(gold)
    except (Exception, RecursionError, MemoryError):  # noqa: BLE001 - a parser of untrusted text may raise anything
        return None
    if not wanted:
        return None
    pipe.send(("phase", "answer"))
    try:
        found = _parse(answer)
        pipe.send(("phase", "compare"))
        # verify is not symmetric: the gold comes first
        return bool(found) and bool(verify(wanted, found, strict=True, timeout_seconds=None))
    except (Exception, RecursionError, MemoryError):  # noqa: BLE001 - as above
        return False


@lru_cache(maxsize=1024)
def _gold(text: str) -> list[Any]:
    return _parse(text)


def _parse(text: str) -> list[Any]:
    # bare LaTeX is not recognised: the formula goes into dollars
    return list(
        parse(
            f"${text}$", extraction_config=_LATEX, fallback_mode="no_fallback",
            extraction_mode="any_match", parsing_timeout=None, raise_on_error=True,
        )
    )  # fmt: skip
