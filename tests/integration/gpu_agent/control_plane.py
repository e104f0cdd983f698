"""Plays scheduler and api on the real bus: writes desired states, answers the agent, stores what it publishes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from shared.bus import Bus
from shared.bus.port import BusUnavailable, StreamMissing, StreamReset
from shared.bus.reader import Reader
from shared.events import decode, subjects
from shared.events.calls import (
    AckQuery,
    AckReply,
    AttemptCursor,
    ControlEntry,
    Heartbeat,
    HeartbeatReply,
    SecretQuery,
    SecretReply,
)
from shared.events.run import BATCH_KIND, BatchBase, RunExited, RunFactBase
from tests.conftest import eventually

STREAMS = ("RUNS", "METRICS", "LOGS", "SAMPLES")
Key = tuple[str, int, str]


class ControlPlane:
    """Applies batches as the api does: in order, each number once, a gap waits for its filling."""

    def __init__(self, scheduler: Bus, api: Bus, host: str) -> None:
        self.scheduler = scheduler
        self.api = api
        self.host = host
        self.control = scheduler.control()
        self.items: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        self.heartbeats: list[Heartbeat] = []
        self.drained = False
        self.secrets: dict[str, str] | None = {"HF_TOKEN": "hf_canary_value_123"}
        self.confirms = True
        self.doubles = 0
        self.gaps_seen = 0
        self.arrival: dict[Key, list[tuple[float, int]]] = defaultdict(list)
        self.epoch = ""
        self._served: list[Any] = []
        self._readers: dict[str, Reader] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.epoch = await self.control.epoch()
        self._served = [
            await self.scheduler.serve("hb.*", self._heartbeat),
            await self.api.serve("ack.*", self._ack),
            await self.api.serve("secret.*", self._secret),
        ]
        self._task = asyncio.create_task(self._read())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for served in self._served:
            await served.close()
        for reader in self._readers.values():
            await reader.close()

    # desired states

    def entry(self, job: str, attempt: int = 1, **fields: Any) -> ControlEntry:
        fields = {"desired": "run", "gpus": (0,), "gpu_uuids": ("slot-0",)} | fields
        config = {"algorithm": "sft", "steps": 20} | fields.pop("config", {})
        return ControlEntry(epoch=self.epoch, job=job, attempt=attempt, config=config, **fields)

    async def want(self, entry: ControlEntry) -> None:
        await self.control.put(f"{self.host}.{entry.job}", entry)

    async def forget(self, job: str) -> None:
        await self.control.delete(f"{self.host}.{job}")

    async def declare_complete(self) -> None:
        await self.control.put(f"{self.host}.epoch", {"epoch": self.epoch})

    # answers

    async def _heartbeat(self, _subject: str, data: bytes) -> HeartbeatReply:
        self.heartbeats.append(Heartbeat.model_validate_json(data))
        return HeartbeatReply(ctl_epoch=self.epoch, drained=self.drained)

    async def _ack(self, _subject: str, data: bytes) -> AckReply | None:
        if not self.confirms:
            return None
        query = AckQuery.model_validate_json(data)
        return AckReply(
            attempts=tuple(
                AttemptCursor(
                    job=c.job,
                    attempt=c.attempt,
                    seq={k: len(self.items[c.job, c.attempt, k]) for k in c.seq},
                )
                for c in query.attempts
            )
        )

    async def _secret(self, _subject: str, data: bytes) -> SecretReply:
        SecretQuery.model_validate_json(data)
        if self.secrets is None:
            return SecretReply(ok=False, error="not granted")
        return SecretReply(ok=True, values=self.secrets)

    # what the agent publishes

    async def _read(self) -> None:
        await asyncio.gather(*(self._follow(stream) for stream in STREAMS))

    async def _follow(self, stream: str) -> None:
        reader = self._readers[stream] = await self.api.reader(stream, after=0, epoch=None)
        while True:
            try:
                messages = await reader.fetch(256, timeout=1.0)
            except StreamReset:
                await reader.close()
                reader = self._readers[stream] = await self.api.reader(stream, after=0, epoch=None)
                continue
            except (BusUnavailable, StreamMissing):
                await asyncio.sleep(0.1)
                continue
            for message in messages:
                self._apply(message.subject, message.headers, message.data)

    def _apply(self, subject: str, headers: Any, data: bytes) -> None:
        where = subjects.RunSubject.parse(subject)
        assert where.host == self.host
        _, event = decode(headers, data)
        if isinstance(event, RunFactBase):
            kind, first, items = "run", event.seq, [event.model_dump()]
        else:
            assert isinstance(event, BatchBase)
            kind, first, items = BATCH_KIND[event.type], event.first_seq, list(event.items)  # type: ignore[attr-defined]
        key = (where.job, where.attempt, kind)
        have = len(self.items[key])
        if first > have + 1:
            self.gaps_seen += 1
            return
        self.doubles += max(0, have + 1 - first)
        new = items[have + 1 - first :]
        self.items[key] += new
        self.arrival[key] += [
            (asyncio.get_running_loop().time(), have + 1 + i) for i in range(len(new))
        ]

    # questions of tests

    def of(self, job: str, kind: str, attempt: int = 1) -> list[dict[str, Any]]:
        return self.items[job, attempt, kind]

    def facts(self, job: str, attempt: int = 1) -> list[str]:
        return [f["type"].split(".")[1] for f in self.of(job, "run", attempt)]

    def exited(self, job: str, attempt: int = 1) -> RunExited | None:
        last = next((f for f in self.of(job, "run", attempt) if f["type"] == "run.exited.v1"), None)
        return None if last is None else RunExited.model_validate(last)

    async def wait_exited(self, job: str, attempt: int = 1, timeout: float = 20) -> RunExited:
        """Wait until the run has ended and everything that it numbered is here."""

        def complete() -> bool:
            exited = self.exited(job, attempt)
            return exited is not None and all(
                len(self.items[job, attempt, kind]) >= last
                for kind, last in exited.last_seq.items()
            )

        await eventually(complete, timeout)
        exited = self.exited(job, attempt)
        assert exited is not None
        for kind, last in exited.last_seq.items():
            assert len(self.items[job, attempt, kind]) == last, kind
        return exited

    async def wait_fact(self, job: str, fact: str, attempt: int = 1, timeout: float = 15) -> None:
        await eventually(lambda: fact in self.facts(job, attempt), timeout)

    async def wait_steps(self, job: str, steps: int, attempt: int = 1) -> None:
        await eventually(lambda: len(self.steps(job, attempt)) >= steps, 30)

    def steps(self, job: str, attempt: int = 1) -> list[int]:
        return [i["step"] for i in self.of(job, "met", attempt) if i["type"] == "metric"]
