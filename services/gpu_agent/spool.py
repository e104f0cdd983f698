"""One attempt's way to the bus: its five kinds, its checkpoints as facts, and how far all of it has come."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from services.gpu_agent.core import holding, loglines
from services.gpu_agent.core.holding import Answers, Hold
from services.gpu_agent.core.numbering import Gap, Item, Position, json_lines, of_types, shorten
from services.gpu_agent.core.spool_cap import Held
from services.gpu_agent.core.stall import Progress, saw
from services.gpu_agent.facts import FactLog, RunCheckpoint, RunCollected, checkpoint_end
from services.gpu_agent.kind_stream import KindStream
from services.gpu_agent.layout import AttemptFiles, JobFiles
from shared.disk.reserve import punch_hole
from shared.log import logger
from shared.runs import write_atomic_json

LOG_CAP_BYTES = 64 * 1024 * 1024
_CHECKPOINTS = ("checkpoint", "checkpoint_deleted")
_SAVE_SECONDS = 1.0


class AttemptSpool:
    """Owned by the agent that holds the home's lock."""

    hold: Hold | None = None
    """The checkpoint that waits for the metrics in front of it."""
    _overdue: Hold | None = None
    """The last one that waited too long."""

    def __init__(self, job: JobFiles, number: int, *, now: float) -> None:
        """Read what is on disk. Raises OSError."""
        self.job = job.job
        self.attempt = number
        self.files: AttemptFiles = job.attempt(number)
        self.log_path: Path = job.log
        self.facts = FactLog(self.files.facts)
        self.refused = False
        """The api counts what this attempt says and does not store it."""
        self.progress = Progress(since=now)
        stored = _read(self.files.relay)
        self.done = bool(stored.get("done"))
        self.streams = self._open_streams(stored)
        self._watch = self._open_watch()
        self._saved_at = now
        self._saved = ""
        self._unsaved = False
        self._now = now
        if self.facts.ends:
            self.close(self.facts.ends)

    def _open_streams(self, stored: dict[str, Any]) -> dict[str, KindStream]:
        self.log_start = int(_read(self.files.entry).get("log_offset", 0))
        metrics = json_lines(of_types("metric", "progress", "phase"))
        samples = json_lines(of_types("sample"), mark=b"sample")
        streams = {
            "run": KindStream("run", self.files.facts, json_lines(shorten), Position()),
            "met": KindStream("met", self.files.events, metrics, Position()),
            "smp": KindStream("smp", self.files.events, samples, Position()),
            "log": KindStream("log", self.log_path, loglines.decode, Position(0, self.log_start)),
            "sys": KindStream("sys", self.files.system, json_lines(shorten), Position()),
        }
        streams["log"].gaps = _read_gaps(self.files.gaps)
        for kind, stream in streams.items():
            try:
                if kind in stored.get("kinds", {}):
                    stream.restore(stored["kinds"][kind])
            except (KeyError, TypeError, ValueError):
                logger("relay").warning("relay_state_damaged", job=self.job, attempt=self.attempt)
        return streams

    def _open_watch(self) -> KindStream:
        def notice(record: Item) -> Item | None:
            step = record.get("step") if record.get("type") in ("progress", "metric") else None
            self.progress = saw(self.progress, self._now, step if isinstance(step, int) else None)
            return record if record.get("type") in _CHECKPOINTS else None

        start = Position(0, self.facts.source_offset)
        return KindStream("checkpoints", self.files.events, json_lines(notice), start)

    # reading

    def poll(self, now: float) -> bool:
        """Take in what was written since the last call; tell whether anything came."""
        self._now = now
        moved = False
        if not self.facts.is_closed:
            moved = self._note_checkpoints()
        for kind, stream in self.streams.items():
            if self.refused and kind != "run":
                continue
            moment = _written_at(stream.path) if kind == "log" and stream.backlog() else 0.0
            moved |= stream.poll(now, moment)
        return moved

    def _note_checkpoints(self) -> bool:
        before = self._watch.read
        steps = self._watch.drain()
        for item, position in steps:
            fact = None if item is None else _checkpoint_fact(item)
            if fact is not None:
                try:
                    self.facts.append(fact, source=position.offset)
                except OSError:
                    self._watch.read = before  # the disk is full: this one is tried again
                    raise
            before = position
        return bool(steps)

    def leaving(self, answers: Answers, now: float) -> int:
        """Return how many of the next facts may go out now. What is in flight was let go before."""
        sources = [checkpoint_end(item) for item in self.streams["run"].head()]
        if self.hold is None and not any(sources):
            return len(sources)
        sent = None if self.refused else self.streams["met"].sent()
        count, self.hold = holding.leaving(sources, sent, self.hold, answers, now)
        if self.hold is not None and count == len(sources) and self._overdue != self.hold:
            self._overdue = self.hold
            logger("relay").warning("checkpoint_before_metrics", job=self.job, metrics_at=sent)
        return count

    def held(self) -> Held:
        """Return what of this attempt is on disk and not confirmed."""
        log = self.streams["log"]
        events = [self.streams[k] for k in ("met", "smp")]
        behind = min(s.confirmed.offset for s in events)
        files = [(self.files.events, behind)]
        files += [
            (s.path, s.confirmed.offset) for k, s in self.streams.items() if k in ("sys", "run")
        ]
        gone = sum(g.bytes for g in log.gaps if g.at.offset >= log.confirmed.offset)
        kept = max(0, log.limit() - log.confirmed.offset - gone)
        droppable = 0 if log.end is not None or log.next_gap_offset() is not None else log.backlog()
        return Held(kept, droppable, sum(max(0, _size(p) - o) for p, o in files))

    def give_up_log(self) -> None:
        """When more of the log waits than the cap, send its oldest part no more: a visible gap; the file keeps it."""
        waiting = self.streams["log"].backlog()
        if waiting > LOG_CAP_BYTES:
            self._leave_out(waiting - LOG_CAP_BYTES // 2)

    def drop_log(self, size: int) -> None:
        """Leave out the oldest `size` bytes that wait, and give their room back: the host holds too much."""
        gap = self._leave_out(size)
        if gap is not None:
            punch_hole(self.log_path, gap.at.offset, gap.end)

    def _leave_out(self, size: int) -> Gap | None:
        """Put a gap in place of about `size` bytes from here on, up to a line's end; None where that cannot be now."""
        stream = self.streams["log"]
        here = stream.read
        if stream.end is not None or size <= 0:
            return None
        if loglines.LineState.parse(here.state).mid or stream.next_gap_offset() is not None:
            return None
        end = _line_start(stream.path, here.offset + size)
        if end is None:
            return None
        lines = _count_lines(stream.path, here.offset, end)
        gap = Gap(here, end, lines, end - here.offset)
        write_atomic_json(
            self.files.gaps,
            [
                [g.at.seq, g.at.offset, g.at.state, g.end, g.lines, g.bytes]
                for g in (*stream.gaps, gap)
            ],
        )
        stream.gaps = (*stream.gaps, gap)
        logger("relay").warning("log_gap", job=self.job, attempt=self.attempt, lines=lines)
        return gap

    # the end

    def note_all_checkpoints(self) -> None:
        """Make facts of the checkpoints that were announced last."""
        while self._note_checkpoints():
            pass

    def find_ends(self) -> dict[str, Position]:
        """Return where every kind but `run` ends, now that nothing of the run lives. It reads the rest of the files."""
        return {kind: s.find_end() for kind, s in self.streams.items() if kind != "run"}

    def close(self, ends: dict[str, Position]) -> None:
        """Nothing behind `ends` belongs to this attempt."""
        for kind, end in ends.items():
            if kind in self.streams:
                self.streams[kind].end = end

    def is_confirmed(self) -> bool:
        """Tell whether the attempt is over and the api has all of it."""
        if not self.facts.is_closed:
            return False
        if self.streams["run"].confirmed_seq < self.facts.last_seq:
            return False
        if self.refused or not self.facts.ends or self.facts.has(RunCollected):
            return True
        return all(s.end is None or s.confirmed_seq >= s.end.seq for s in self.streams.values())

    def published(self) -> dict[str, int]:
        """Return the last published number of every kind."""
        return {kind: s.published.seq for kind, s in self.streams.items()}

    def save(self, now: float, *, force: bool = False) -> bool:
        """Write how far the relay has come, at most once a second; tell whether the file says so now.

        A lost file only means that more is sent again.
        """
        if not force and now - self._saved_at < _SAVE_SECONDS:
            return False
        self._saved_at = now
        document = {"done": self.done, "kinds": {k: s.dump() for k, s in self.streams.items()}}
        text = json.dumps(document)
        if text == self._saved:
            return True
        temporary = self.files.relay.with_name(f".relay.{secrets.token_hex(4)}")
        try:
            temporary.write_text(text)
            temporary.replace(self.files.relay)
            self._saved = text
            self._unsaved = False
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if not self._unsaved:  # it is tried every second
                logger("relay").warning("relay_state_not_saved", job=self.job, error=str(error))
            self._unsaved = True
        return not self._unsaved


def _checkpoint_fact(item: Item) -> RunCheckpoint | None:
    t = float(item.get("t") or time.time())
    try:
        if item["type"] == "checkpoint_deleted":
            return RunCheckpoint(
                seq=0, t=t, step=item["step"], path=str(item.get("path", "")), deleted=True
            )
        fields = {k: v for k, v in item.items() if k in RunCheckpoint.model_fields and k != "type"}
        return RunCheckpoint.model_validate(fields | {"seq": 0, "t": t})
    except (KeyError, ValueError):
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _read_gaps(path: Path) -> tuple[Gap, ...]:
    try:
        rows = json.loads(path.read_bytes())
    except FileNotFoundError:
        return ()
    return tuple(Gap(Position(r[0], r[1], r[2]), r[3], r[4], r[5]) for r in rows)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _written_at(path: Path) -> float:
    try:
        return os.stat(path).st_mtime  # noqa: PTH116 - called 50 times a second
    except OSError:
        return time.time()


def _line_start(path: Path, offset: int) -> int | None:
    """Return where the first whole line behind `offset` begins, or None where there is none near."""
    with path.open("rb") as file:
        file.seek(offset)
        newline = file.read(loglines.LINE_LIMIT * 4).find(b"\n")
    return None if newline < 0 else offset + newline + 1


def _count_lines(path: Path, start: int, end: int) -> int:
    lines, left = 0, end - start
    with path.open("rb") as file:
        file.seek(start)
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            lines += chunk.count(b"\n")
            left -= len(chunk)
    return lines
