"""A supervised service: readiness, restart after a kill, an end in good order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from trainyard.stack.process import Service, StartFailed

SCRIPT = "import pathlib,sys,time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


def a_service(tmp_path: Path, script: str = SCRIPT, seconds: float = 120) -> Service:
    mark = tmp_path / "ready"

    async def ready() -> bool:
        return mark.exists()

    return Service(
        "probe",
        [sys.executable, "-c", script, str(mark)],
        os.environ,
        tmp_path / "probe.log",
        ready,
        ready_seconds=seconds,
        stop_seconds=5,
    )


async def test_a_killed_service_is_started_again(tmp_path: Path) -> None:
    service = a_service(tmp_path)
    await service.start()
    assert service.process is not None
    first = service.process.pid
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while service.process.pid == first and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert service.process.pid != first
    await service.stop()
    assert service.process.returncode is not None


async def test_a_service_that_is_never_ready_names_its_log(tmp_path: Path) -> None:
    service = a_service(tmp_path, "raise SystemExit(3)", seconds=1)
    with pytest.raises(StartFailed, match=r"probe\.log"):
        await service.start()
    await service.stop()


async def test_a_service_whose_settings_are_refused_says_so_at_once(tmp_path: Path) -> None:
    script = "import sys; print('TRAINYARD_X is wrong; set Y.', file=sys.stderr); sys.exit(78)"
    service = a_service(tmp_path, script, seconds=600)
    began = time.monotonic()
    with pytest.raises(StartFailed, match=r"TRAINYARD_X is wrong; set Y\."):
        await service.start()
    assert time.monotonic() - began < 120
    await service.stop()


async def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SCRIPT
    service = a_service(tmp_path, script)
    service.stop_seconds = 0.5
    await service.start()
    await service.stop()
    assert service.process is not None
    assert service.process.returncode == -signal.SIGKILL
