"""Services of a home as real processes of their own, started and ended one by one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2
import psutil

from shared.bus.credentials import create_host_key, create_service_keys
from shared.bus.embedded import EmbeddedBroker
from shared.bus.keys import hosts_locked

ROOT = Path(__file__).resolve().parent.parent


class Process:
    """One service as a process; use as a context, which ends it."""

    def __init__(self, home: Path, argv: list[str], name: str, **env: str) -> None:
        """Start it; its output goes to `<home>/logs/<name>.bench.log`."""
        (home / "logs").mkdir(parents=True, exist_ok=True)
        self.began = time.perf_counter()
        with (home / "logs" / f"{name}.bench.log").open("ab") as output:
            self.popen = subprocess.Popen(
                argv,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                env=os.environ
                | {
                    "TRAINYARD_HOME": str(home),
                    "TRAINYARD_CHECKPOINT_DIR": str(home / "checkpoints"),
                    "TRAINYARD_API_PORT": "0",
                    "PYTHONPATH": str(ROOT),
                    **env,
                },
            )

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.stop()

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> None:
        """Send the signal and wait; after `seconds`, kill."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()

    def cpu_seconds(self) -> float:
        """Return the processor time of the process so far."""
        times = psutil.Process(self.popen.pid).cpu_times()
        return float(times.user + times.system)


def service(home: Path, module: str, **env: str) -> Process:
    """Start `python -m module` on a home."""
    return Process(home, [sys.executable, "-P", "-m", module], module.rpartition(".")[2], **env)


def api(home: Path, **env: str) -> tuple[Process, httpx2.Client]:
    """Start the api and return it with a client, once it answers."""
    run_file = home / "run" / "api.json"
    run_file.unlink(missing_ok=True)
    process = service(home, "services.api", **env)
    until(run_file.exists, 60, "the api listens")
    client = httpx2.Client(base_url=json.loads(run_file.read_text())["url"], timeout=60)
    until(lambda: _answers(client), 60, "the api answers")
    return process, client


@contextlib.contextmanager
def broker(home: Path, hosts: Sequence[str] = ()) -> Iterator[Process]:
    """Run the broker of a home that lets `hosts` in."""
    create_service_keys(home)
    with hosts_locked(home) as keys:
        keys.update({name: create_host_key(home, name) for name in hosts})
    embedded = EmbeddedBroker(home).prepare()
    with Process(home, embedded.command(), "broker") as process:
        asyncio.run(embedded.wait_ready())
        yield process


def timed(work: Callable[[], object], times: int) -> list[float]:
    """Return the seconds of each call, after two that do not count."""
    found = []
    for turn in range(times + 2):
        began = time.perf_counter()
        work()
        if turn >= 2:
            found.append(time.perf_counter() - began)
    return found


def until(check: Callable[[], Any], seconds: float, what: str, pause: float = 0.02) -> Any:
    """Poll `check` until it is true and return its value. Raises TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(pause)
    raise TimeoutError(f"not within {seconds:g} s: {what}")


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx2.TransportError:
        return False
