"""The agent's spool over files in memory: the product's own positions, queues and numbers, without a disk."""

from __future__ import annotations

from typing import Any

import orjson

from services.gpu_agent.core.numbering import Position, json_lines, of_types, shorten
from services.gpu_agent.core.spool_cap import Held
from services.gpu_agent.core.stall import Progress
from services.gpu_agent.facts import FactLog
from services.gpu_agent.kind_stream import KindStream
from services.gpu_agent.spool import AttemptSpool
from shared.events.run import RunFact
from tests.faults.simulation.host import AttemptDir


class MemoryStream(KindStream):
    """One kind; `path` is the file's bytes."""

    def limit(self) -> int:
        return self.end.offset if self.end is not None else len(self.path)  # type: ignore[arg-type]

    def _bytes(self, offset: int, size: int) -> bytes:
        return bytes(self.path[offset : offset + size]) if size > 0 else b""  # type: ignore[index]


class MemoryFacts(FactLog):
    """`facts.jsonl`; an append is durable at once."""

    def __init__(self, files: AttemptDir) -> None:
        """Read what is there."""
        self._files = files
        self._records = files.records

    def append(
        self,
        fact: RunFact,
        *,
        source: int | None = None,
        ends: dict[str, Position] | None = None,
    ) -> RunFact:
        """Write a fact with the next number."""
        numbered = fact.model_copy(update={"seq": self.last_seq + 1})
        record: dict[str, Any] = numbered.model_dump(mode="json")
        if source is not None:
            record["_src"] = source
        if ends is not None:
            record["_ends"] = {kind: [p.seq, p.offset] for kind, p in ends.items()}
        self._files.facts += orjson.dumps(record) + b"\n"
        self._records.append(record)
        return numbered


class MemorySpool(AttemptSpool):
    """One attempt's way to the bus."""

    def __init__(self, files: AttemptDir, now: float) -> None:
        """Go on where an earlier agent was."""
        self.job = files.job
        self.attempt = files.attempt
        self.folder = files
        self.facts = MemoryFacts(files)
        self.refused = False
        self.progress = Progress(since=now)
        self.done = bool(files.relay.get("done"))
        empty = bytearray()
        start = Position()
        metrics = json_lines(of_types("metric", "progress", "phase"))
        lines = json_lines(shorten)
        self.streams = {
            "run": MemoryStream("run", files.facts, lines, start),  # type: ignore[arg-type]
            "met": MemoryStream("met", files.events, metrics, start),  # type: ignore[arg-type]
            "smp": MemoryStream("smp", empty, lines, start),  # type: ignore[arg-type]
            "log": MemoryStream("log", empty, lines, start),  # type: ignore[arg-type]
            "sys": MemoryStream("sys", empty, lines, start),  # type: ignore[arg-type]
        }
        for kind, stored in files.relay.get("kinds", {}).items():
            self.streams[kind].restore(stored)
        self._watch = self._open_watch()
        self._now = now
        if self.facts.ends:
            self.close(self.facts.ends)

    def _open_watch(self) -> KindStream:
        watch = json_lines(of_types("checkpoint", "checkpoint_deleted"))
        start = Position(0, self.facts.source_offset)
        return MemoryStream("checkpoints", self.folder.events, watch, start)  # type: ignore[arg-type]

    def poll(self, now: float) -> bool:
        """Take in what was written since the last call."""
        moved = False
        if not self.facts.is_closed:
            moved = self._note_checkpoints()
        for kind in ("run", "met"):
            if not (self.refused and kind != "run"):
                moved |= self.streams[kind].poll(now, 0.0)
        return moved

    def held(self) -> Held:
        """Nothing here is ever too much."""
        return Held(0, 0, 0)

    def give_up_log(self) -> None:
        """There is no log here."""

    def save(self, now: float, *, force: bool = False) -> bool:
        """Write how far the relay has come; `now` bounds how often the product does so."""
        if force or now - getattr(self, "_saved_at", -9.0) >= 1.0:
            self._saved_at = now
            kinds = {k: self.streams[k].dump() for k in ("run", "met")}
            self.folder.relay = {"done": self.done, "kinds": kinds}
        return True
