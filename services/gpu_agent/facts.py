"""`facts.jsonl`: the agent's own run facts, one durable line a sequence number, with private notes that never leave the host."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from services.gpu_agent.core.numbering import Position
from shared.disk.reserve import extend_beyond_end
from shared.events.run import (
    RunAccepted,
    RunCheckpoint,
    RunCollected,
    RunExited,
    RunFact,
    RunRefused,
    RunStarted,
)
from shared.runs import fsync_directory

_ADAPTER: TypeAdapter[RunFact] = TypeAdapter(Annotated[RunFact, Field(discriminator="type")])
LAST_WORDS_BYTES = 16 * 1024
"""Kept free behind the newest fact, so that `exited` can be written on a full disk."""
_SOURCE = "_src"
_ENDS = "_ends"


class FactLog:
    """Opened by one agent at a time; a torn last line (it was never published) is cut off."""

    def __init__(self, path: Path) -> None:
        """Read what is there. Raises OSError."""
        self.path = path
        self._records: list[dict[str, Any]] = []
        if path.exists():
            self._load()

    def _load(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        self._records = [json.loads(line) for line in data[:whole].splitlines()]

    @property
    def last_seq(self) -> int:
        """Number of the newest fact, 0 where there is none."""
        return len(self._records)

    @property
    def is_closed(self) -> bool:
        """Tell whether the attempt's last fact is written."""
        return any(
            r["type"] in ("run.exited.v1", "run.refused.v1", "run.collected.v1")
            for r in self._records
        )

    def has(self, kind: type[RunFact]) -> bool:
        """Tell whether a fact of this type is written."""
        type_ = kind.model_fields["type"].default
        return any(r["type"] == type_ for r in self._records)

    @property
    def source_offset(self) -> int:
        """Bytes of `events.jsonl` whose checkpoints are facts already."""
        return max((int(r.get(_SOURCE, 0)) for r in self._records), default=0)

    @property
    def ends(self) -> dict[str, Position]:
        """Where every kind of this attempt ends; empty before `exited` is written."""
        found: dict[str, list[int]] = next((r[_ENDS] for r in self._records if _ENDS in r), {})
        return {kind: Position(int(seq), int(offset)) for kind, (seq, offset) in found.items()}

    def append(
        self,
        fact: RunFact,
        *,
        source: int | None = None,
        ends: dict[str, Position] | None = None,
    ) -> RunFact:
        """Write a fact durably with the next number and return it. Raises OSError (disk full): nothing is written then."""
        numbered = fact.model_copy(update={"seq": self.last_seq + 1})
        record = numbered.model_dump(mode="json")
        if source is not None:
            record[_SOURCE] = source
        if ends is not None:
            record[_ENDS] = {kind: [p.seq, p.offset] for kind, p in ends.items()}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        is_new = not self.path.exists()
        descriptor = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            before = os.fstat(descriptor).st_size
            try:
                extend_beyond_end(descriptor, len(line) + LAST_WORDS_BYTES)
                _write_all(descriptor, line)
                os.fsync(descriptor)
            except OSError:
                if os.fstat(descriptor).st_size > before:
                    os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            fsync_directory(self.path.parent)
        self._records.append(record)
        return numbered


def parse_fact(record: dict[str, Any]) -> RunFact:
    """Return the fact in a line of `facts.jsonl`, private notes left out. Raises ValueError."""
    return _ADAPTER.validate_python(record)


def checkpoint_end(record: dict[str, Any]) -> int:
    """Return the byte of `events.jsonl` behind the checkpoint that this line of `facts.jsonl` tells of; 0 for any other fact."""
    if record.get("type") != "run.checkpoint.v1" or record.get("deleted"):
        return 0
    return int(record.get(_SOURCE, 0))


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line that need not survive a power cut; a torn line before it is closed first."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with path.open("ab+") as file:
        end = file.tell()
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


__all__ = [
    "FactLog",
    "RunAccepted",
    "RunCheckpoint",
    "RunCollected",
    "RunExited",
    "RunRefused",
    "RunStarted",
    "append_line",
    "checkpoint_end",
    "parse_fact",
]
