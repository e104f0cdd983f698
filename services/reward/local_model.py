"""One reward model's process: requests are gathered for 5 ms into one batch; a dead or stuck process is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared.log import logger

LOG = logger("reward.model")
WINDOW_SECONDS: Final = 0.005
BATCH: Final = 64
LOAD_SECONDS: Final = 300.0
BATCH_SECONDS: Final = 120.0
QUEUE: Final = 20_000
AGAIN_SECONDS: Final = 10.0
"""After a failed start no other is tried for so long."""
LINE_BYTES: Final = 64 * 1024 * 1024


class ModelUnavailable(Exception):
    """The model cannot score; the text says why."""


@dataclass(slots=True)
class _Asked:
    pair: tuple[str, str]
    max_length: int
    answer: asyncio.Future[float | str]


class LocalModel:
    """Started with the first request; `close` ends it."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """`device`: cpu, cuda or cuda:N. GPUs are given to jobs by the scheduler, which does not know of this process."""
        self._folder = folder
        self._device = device
        self._queue: asyncio.Queue[_Asked] = asyncio.Queue(QUEUE)
        self._process: asyncio.subprocess.Process | None = None
        self._worker: asyncio.Task[None] | None = None
        self._failed: tuple[float, str] | None = None
        self.batches = 0
        self.scored = 0

    async def scores(self, pairs: Sequence[tuple[str, str]], max_length: int) -> list[float | str]:
        """Return a logit for each (prompt, completion), or why there is none. Raises ModelUnavailable."""
        loop = asyncio.get_running_loop()
        if self._failed is not None and loop.time() < self._failed[0]:
            raise ModelUnavailable(self._failed[1])
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="reward-model")
        asked = [_Asked(pair, max_length, loop.create_future()) for pair in pairs]
        for one in asked:
            await self._queue.put(one)
        try:
            return [await one.answer for one in asked]
        finally:
            for one in asked:
                one.answer.cancel()

    async def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        await self._end()

    async def _work(self) -> None:
        while True:
            batch = await self._gather()
            if not batch:
                continue
            try:
                found = await self._ask(batch)
            except (ModelUnavailable, OSError, ValueError) as error:
                await self._end()
                text = str(error) or type(error).__name__
                self._failed = (asyncio.get_running_loop().time() + AGAIN_SECONDS, text)
                LOG.warning("reward_model_failed", folder=str(self._folder), error=text[:300])
                for one in [*batch, *self._drained()]:
                    if not one.answer.done():
                        one.answer.set_exception(ModelUnavailable(text))
                continue
            self._failed = None
            self.batches += 1
            self.scored += len(batch)
            for one, score in zip(batch, found, strict=True):
                if not one.answer.done():
                    one.answer.set_result(score)

    async def _gather(self) -> list[_Asked]:
        """Return what came within the window; what nobody waits for any more is left out."""
        batch = [await self._queue.get()]
        deadline = asyncio.get_running_loop().time() + WINDOW_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while len(batch) < BATCH:
                    batch.append(await self._queue.get())
        length = batch[0].max_length
        other = [b for b in batch if b.max_length != length]
        for one in other:
            self._queue.put_nowait(one)
        return [b for b in batch if b.max_length == length and not b.answer.done()]

    def _drained(self) -> list[_Asked]:
        found = []
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        return found

    async def _ask(self, batch: Sequence[_Asked]) -> list[float | str]:
        process = await self._running()
        assert process.stdin is not None
        document = {"pairs": [one.pair for one in batch], "max_length": batch[0].max_length}
        process.stdin.write(json.dumps(document).encode() + b"\n")
        answer = await self._read(process, BATCH_SECONDS)
        if "error" in answer:
            raise ModelUnavailable(str(answer["error"]))
        scores: list[float | str] = answer["scores"]
        if len(scores) != len(batch):
            raise ModelUnavailable("the model answered for another number of items")
        return scores

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        if not any(
            (self._folder / name).is_file() for name in ("config.json", "adapter_config.json")
        ):
            raise ModelUnavailable(
                f"{self._folder} holds no model: neither config.json nor adapter_config.json is there"
            )
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "services.reward.model_process", str(self._folder), self._device,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            limit=LINE_BYTES,
        )  # fmt: skip
        await self._read(self._process, LOAD_SECONDS)
        LOG.info("reward_model_ready", folder=str(self._folder), pid=self._process.pid)
        return self._process

    async def _read(self, process: asyncio.subprocess.Process, seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                line = await process.stdout.readline()
        except TimeoutError:
            raise ModelUnavailable(f"the model did not answer within {seconds:g} s") from None
        if not line:
            status = await process.wait()
            raise ModelUnavailable(
                f"the model's process ended with status {status}; is {self._folder} a sequence-classification model "
                "in safetensors, is the extra reward-model installed, and is there room on TRAINYARD_REWARD_MODEL_DEVICE "
                f"({self._device})?"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
