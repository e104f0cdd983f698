"""How long a kill -9 of a service is felt while a real trainer runs, beside starting the bare thing alone."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from benchmarks.embedded import ROOT, job, make_model, running, wait_warm
from benchmarks.row import Row, percentile, seconds
from shared.bus.embedded import server_binary
from tests.e2e.stack import Stack, until
from trainyard import Client
from trainyard.client import ApiError, ApiUnreachable
from trainyard.stack.ports import free_port

API_SECONDS, AGENT_SECONDS, BROKER_SECONDS = 3.0, 2.0, 5.0
LIMIT = 30.0
POLL_SECONDS = 0.02
STEPS = 100_000
BARE_API = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
app.get("/livez")(lambda: {})
uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""


def measure(quick: bool) -> list[Row]:
    """Kill each service in turn while a run goes on; a stack of its own each time, for `up` waits longer with each death."""
    found: dict[str, list[float]] = {"api": [], "agent": [], "flow": [], "broker": []}
    for _ in range(1 if quick else 4):
        with running() as (stack, client):
            _round(stack, client, found)
    rounds = range(1 if quick else 3)
    bare = {
        "api": percentile([_bare_api() for _ in rounds], 0.5),
        "agent": percentile([_bare_agent() for _ in rounds], 0.5),
        "broker": percentile([_bare_broker() for _ in rounds], 0.5),
    }
    return [
        _row("api killed → ready again", found["api"], bare["api"], API_SECONDS,
             "kill -9 to `/readyz` 200 on the same port; baseline: a bare FastAPI app under uvicorn, from exec to its first answer"),
        _row("agent killed → run adopted", found["agent"], bare["agent"], AGENT_SECONDS,
             "kill -9 to the new agent holding the run (`agent.json`); a line written after the kill is seen over REST "
             f"after {seconds(found['flow'])}; baseline: a fresh Python process that imports the agent"),
        _row("broker killed → metrics flow", found["broker"], bare["broker"], BROKER_SECONDS,
             "kill -9 to the first metric line written after it, seen over REST; baseline: a bare nats-server with an empty "
             "store, from exec to its greeting"),
    ]  # fmt: skip


def _row(what: str, took: list[float], bare: float, goal: float, note: str) -> Row:
    worst = max(took)
    each = ", ".join(f"{one:.2f}" for one in took)
    always = f"a real trainer goes on meanwhile, and no step was lost (each kill: {each} s); "
    ratio = f"{percentile(took, 0.5) / bare:.1f}"
    return Row(what, seconds(took), f"{bare:.2f} s", ratio, f"≤ {goal:g} s", worst <= goal, always + note)  # fmt: skip


def _round(stack: Stack, client: Client, found: dict[str, list[float]]) -> None:
    """Kill the three of one stack, each while metrics flow, and look whether any step is missing at the end."""
    wait_warm(stack)
    run = client.jobs.submit(job(make_model(stack.home / "tiny"), STEPS) | {"num_epochs": 10_000})
    port = int(client.url.rsplit(":", 1)[1])

    def flows(since: float) -> bool:
        with suppress(ApiUnreachable, ApiError):
            x = client.jobs.metrics(run.uuid, ["loss"], x="time", points=2).x
            return bool(x) and float(x[-1] or 0.0) > since
        return False

    def flows_again() -> None:
        now = time.time()
        until(lambda: flows(now), 60, "metrics flow", stack)

    flows_again()
    began = _kill(stack, "services.api")
    found["api"].append(_felt(began, lambda: _answers(port, "/readyz")))
    flows_again()
    pid, ready = stack.pid_of("services.gpu_agent"), stack.home / "agents" / "local" / "agent.json"
    began = _kill(stack, "services.gpu_agent")
    found["agent"].append(_felt(began, lambda: _pid_in(ready) not in (None, pid)))
    found["flow"].append(_felt(began, lambda: flows(began)))
    flows_again()
    began = _kill(stack, "nats-server")
    found["broker"].append(_felt(began, lambda: flows(began)))
    client.jobs.cancel(run.uuid)
    client.jobs.wait(run.uuid, 60)
    steps = client.jobs.metrics(run.uuid, ["loss"], points=2)
    if steps.raw_count != steps.x[-1]:
        raise RuntimeError(f"{steps.raw_count} lines for {steps.x[-1]} steps")


def _kill(stack: Stack, module: str) -> float:
    """Send SIGKILL and return the Unix time at which that was."""
    pid = stack.pid_of(module)
    now = time.time()
    os.kill(pid, 9)
    return now


def _felt(began: float, check: Callable[[], bool]) -> float:
    """Return the seconds since `began` after which `check` is true."""
    while not check():
        if time.time() - began > LIMIT:
            raise RuntimeError(f"not back after {LIMIT:g} s")
        time.sleep(POLL_SECONDS)
    return time.time() - began


def _answers(port: int, path: str) -> bool:
    """Ask with the standard library: a new httpx client costs 30 ms of processor time, and is asked for often."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    with suppress(OSError, http.client.HTTPException), closing(link):
        link.request("GET", path)
        return link.getresponse().status == 200
    return False


def _pid_in(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _bare_api() -> float:
    port = free_port()
    return _until_ready([sys.executable, "-c", BARE_API, str(port)], lambda: _answers(port, "/livez"))  # fmt: skip


def _bare_broker() -> float:
    port = free_port()
    with tempfile.TemporaryDirectory() as store:
        argv = [str(server_binary(None)), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", store]
        return _until_ready(argv, lambda: _greets(port))


def _bare_agent() -> float:
    began = time.time()
    argv = [sys.executable, "-c", "import services.gpu_agent.daemon"]
    subprocess.run(argv, check=True, cwd=ROOT, timeout=60)
    return time.time() - began


def _until_ready(argv: list[str], check: Callable[[], bool]) -> float:
    began = time.time()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return _felt(began, check)
    finally:
        process.terminate()
        process.wait(timeout=10)


def _greets(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as client:
        return client.recv(4) == b"INFO"
    return False
