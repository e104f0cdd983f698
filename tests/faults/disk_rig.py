"""A real stack with a small volume for each of its folders, what is asked of it while one is full, and what must hold."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from services.gpu_agent import checkpoint_store
from tests.e2e.pacer import Pacer
from tests.e2e.stack import until
from tests.faults.scene import NO_ENV, Env, Scene
from tests.faults.volumes import Volume, small_volume
from tests.faults.workload import tiny_job
from trainyard import Job

MIB_EACH = 400
"""More than the agent estimates for the checkpoints of a job."""
STEPS, SAVE = 80, 10
ACCEPTED_AT_MOST = 2
RECOVERY_SECONDS = 30.0
FOLDERS = {
    "broker": "nats/store",
    "database": "api",
    "jobs": "agents/local/jobs",
    "checkpoints": "checkpoints",
    "logs": "logs",
}


@dataclasses.dataclass
class Rig:
    """The stack, its model, and a volume by name; `home` holds what has no volume of its own: the scheduler's database."""

    scene: Scene
    model: Path
    volumes: dict[str, Volume]
    pacer: Pacer
    """Keeps a job that trains from coming to its end before `completes` is asked."""

    @property
    def client(self) -> Any:
        return self.scene.stack.client

    def job(self, uuid: str) -> Job:
        found: Job = self.client.jobs.get(uuid)
        return found

    def get(self, path: str) -> Any:
        return self.client._http.get(path)

    def checkpoints(self, uuid: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(f"/api/v1/jobs/{uuid}/checkpoints").json()
        return found

    def trained(self, uuid: str, step: int) -> bool:
        progress = self.job(uuid).progress
        return progress is not None and progress.step >= step

    def training(self, **changes: Any) -> str:
        """Submit a job and return it once its second checkpoint is listed."""
        body = {"max_steps": STEPS, "save_steps": SAVE, "num_epochs": 50, "max_retries": 0}
        job = self.scene.workload.submit(**body | changes)
        until(lambda: len(self.checkpoints(job)) >= 2, 60, f"two checkpoints of {job}")
        return job

    def completes(self, job: str, what: str) -> None:
        """Let a job come to its end and wait for that."""
        self.pacer.free.add(job)
        until(lambda: self.job(job).status == "COMPLETED", 60, what)


class Filled(contextlib.AbstractContextManager["Filled"]):
    """Keeps a volume full from a thread, whatever is freed on it meanwhile."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="filler")

    def __enter__(self) -> Self:
        self.volume.fill()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self.volume.release()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            self.volume.fill()


def requests_for(rig: Rig, seconds: float) -> Counter[str]:
    """Submit for a while; every answer is either a job or a 503 that says what is missing. Count both."""
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.5)
        listed = rig.get("/api/v1/jobs/")
        assert listed.status_code == 200, listed.text
        if seen["201"] >= ACCEPTED_AT_MOST:
            continue
        body = tiny_job(rig.model, max_steps=2, save_steps=2)
        answer = rig.client._http.post("/api/v1/jobs/", json=body)
        seen[str(answer.status_code)] += 1
        if answer.status_code == 201:
            rig.scene.workload.bodies[answer.json()["uuid"]] = body
        else:
            assert answer.status_code == 503, answer.text
            assert answer.headers["content-type"].startswith("application/problem+json")
            assert int(answer.headers["retry-after"]) > 0
            said = answer.json()
            assert said["code"] == "database_full", said
            assert names(said["detail"], rig.volumes["database"].path), said
    return seen


def names(sentence: str | None, path: Path) -> bool:
    """Tell whether a sentence names the path, what is needed there, and what there is."""
    return (
        sentence is not None and str(path) in sentence and "needs" in sentence and "has" in sentence
    )


def recovered(rig: Rig, what: str, check: Callable[[], object]) -> None:
    """Wait for `check`, and for the stack to be ready, RECOVERY_SECONDS at most; print how long it took."""
    began = time.monotonic()
    until(lambda: check() and rig.get("/readyz").status_code == 200, RECOVERY_SECONDS, what)
    print(f"{what}: {time.monotonic() - began:.1f} s")


def readiness(rig: Rig) -> tuple[int, str]:
    answer = rig.get("/readyz")
    return answer.status_code, answer.json()["checks"]["disk"]["detail"]


def doctor(rig: Rig) -> tuple[int, dict[str, dict[str, str]]]:
    env = rig.scene.stack.env | {"TRAINYARD_URL": rig.client.url}
    command = [sys.executable, "-P", "-m", "trainyard.cli.main", "doctor", "--output", "json"]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    return done.returncode, {f["check"]: f for f in json.loads(done.stdout)}


def assert_nothing_half_written(rig: Rig, job: str) -> None:
    """Every listed checkpoint is whole, and no folder with a checkpoint's name is not."""
    listed = rig.checkpoints(job)
    assert [c["step"] for c in listed][:1] == [0]
    for checkpoint in listed:
        assert checkpoint_store.verify(Path(checkpoint["path"])) is None
    for folder in (rig.volumes["checkpoints"].path / job).glob("checkpoint-*"):
        assert checkpoint_store.verify(folder) is None, folder


def assert_paused_for_room(rig: Rig, job: str, path: Path) -> None:
    """The job says where room is missing, keeps its checkpoints, and spends no retry."""
    until(lambda: rig.job(job).status == "PAUSED", 30, f"{job} is paused", rig.scene.stack)
    found = rig.job(job)
    assert found.reason == "disk_full", found
    assert names(found.message, path), found.message
    assert found.hint
    assert "by itself" in found.hint
    assert_nothing_half_written(rig, job)


@contextlib.contextmanager
def stack_on_small_volumes(
    home: Path, model: Path, *names: str, env: Env = NO_ENV
) -> Iterator[Rig]:
    """Run a stack whose home and the named folders are small volumes."""
    with contextlib.ExitStack() as stack:
        volumes = {"home": stack.enter_context(small_volume(home, 200))}
        for name in names:
            volumes[name] = stack.enter_context(small_volume(home / FOLDERS[name], MIB_EACH))
        with Scene(home, model, 1, env=env) as scene, Pacer([scene.stack.jobs_dir]) as pacer:
            yield Rig(scene, model, volumes, pacer)
