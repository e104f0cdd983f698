"""Reads one job all along, as users do: REST again and again, and a WebSocket that it leaves and takes up again with its last number."""

from __future__ import annotations

import json
import random
import threading
import time
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.faults.partitions.reading import FrameSeen, Seen
from trainyard import Client

POLL_SECONDS = 0.15
OPEN_SECONDS = 60.0


class Follower:
    """Two threads from `start` to `stop`."""

    def __init__(self, url: str, token: str | None, job: str, seed: int) -> None:
        self._client = Client(url, token, timeout=120)
        self.job = job
        self.reads: list[Seen] = []
        self.frames: list[FrameSeen] = []
        self.connections = 0
        self.failure: BaseException | None = None
        self._rng = random.Random(seed)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(work,), name=work.__name__)
            for work in (self._poll, self._watch)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; what they could not do is raised here."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(OPEN_SECONDS + 10)
        self._client.close()
        if self.failure is not None:
            raise self.failure

    def catch_up(self, seconds: float) -> None:
        """Wait until the WebSocket has been closed after the job's last frame."""
        self._threads[1].join(seconds)
        assert not self._threads[1].is_alive(), "the live feed did not end with the job"

    def replay(self) -> tuple[FrameSeen, ...]:
        """Return every frame from the first on, read in one go once the job has ended."""
        found: list[FrameSeen] = []
        self._read(0, found, None)
        return tuple(found)

    def _guard(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test that stops it
            self.failure = error

    def _poll(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            asked = time.time()
            job = self._client.jobs.get(self.job)
            self.reads.append(
                Seen(
                    asked, time.time(), job.status, job.reason, job.attempt, job.host,
                    job.progress.step if job.progress else 0, job.waiting_for,
                )
            )  # fmt: skip

    def _watch(self) -> None:
        while not self._stopping.is_set():
            since = self.frames[-1].seq if self.frames else 0
            if self._read(since, self.frames, self._rng.uniform(0.5, 4.0)):
                return

    def _read(self, since: int, into: list[FrameSeen], patience: float | None) -> bool:
        """Read frames behind `since` until the job has ended (True), or for `patience` seconds."""
        self.connections += 1
        base = self._client.url.replace("http", "ws", 1)
        address = f"{base}/api/v1/monitoring/{self.job}/live?since={since}"
        token = self._client.token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        leave = None if patience is None else time.monotonic() + patience
        with connect(
            address, additional_headers=headers, max_size=None, open_timeout=OPEN_SECONDS
        ) as socket:
            while not self._stopping.is_set() or leave is None:
                if leave is not None and time.monotonic() > leave:
                    return False
                try:
                    text = socket.recv(timeout=0.2 if leave is not None else OPEN_SECONDS)
                except TimeoutError:
                    if leave is None:
                        raise
                    continue
                except ConnectionClosed as closed:
                    return closed.rcvd is not None and closed.rcvd.code == 1000
                frame = json.loads(text)
                data = json.dumps(frame["data"], sort_keys=True)
                into.append(FrameSeen(time.time(), frame["seq"], frame["type"], data))
        return False


def read_logs(client: Client, job: str) -> tuple[tuple[int, str], ...]:
    """Return (attempt, text) of every line of the job's log as REST shows it, oldest first."""
    found: list[tuple[int, str]] = []
    after: int | None = 0
    while after is not None:
        page = client.jobs.logs(job, after=after, limit=1000)
        found += [(line["attempt"], line["message"]) for line in page["items"]]
        after = page["next"]
    return tuple(found)
