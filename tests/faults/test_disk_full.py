"""Every volume of a real stack is filled to the last byte while jobs train and requests come in, then freed.

Nothing acknowledged is lost, every refusal and every pause names path, need and have, the last good checkpoint stays,
and all goes on by itself within 30 s. One stack for all of it; a volume for each folder.
"""

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

import pytest

from services.gpu_agent import checkpoint_store
from tests.e2e.stack import until
from tests.faults.proof import Scene
from tests.faults.volumes import Volume, needs_root, small_volume
from tests.faults.workload import tiny_job
from trainyard import Job

pytestmark = [pytest.mark.e2e, needs_root]
STEPS, SAVE = 100, 20
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


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Rig]:
    home = tmp_path_factory.mktemp("full") / "home"
    with contextlib.ExitStack() as stack:
        volumes = {"home": stack.enter_context(small_volume(home, 200))}
        for name, folder in FOLDERS.items():
            volumes[name] = stack.enter_context(small_volume(home / folder, 200))
        with Scene(home, tiny_model, 1) as scene:
            rig = Rig(scene, tiny_model, volumes)
            yield rig
            report = scene.finish("full disks", 1, Counter(), 60)
            print(report)
            assert report.violations == [], str(report)


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
        self._thread.join(20)
        self.volume.release()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            self.volume.fill()


def requests_for(rig: Rig, seconds: float) -> Counter[str]:
    """Submit for a while; every answer is either a job or a 503 that says what is missing. Count both."""
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
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
        listed = rig.get("/api/v1/jobs/")
        assert listed.status_code == 200, listed.text
        time.sleep(0.5)
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
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
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


def test_the_brokers_store(rig: Rig) -> None:
    job = rig.training()
    with Filled(rig.volumes["broker"]):
        seen = requests_for(rig, 5)
        assert set(seen) == {"201"}
        until(
            lambda: rig.get("/readyz").json()["checks"]["bus"]["ok"] is False, 10, "it is noticed"
        )
        ready, said = readiness(rig)
        code, found = doctor(rig)
    assert ready == 503
    assert names(said, rig.volumes["broker"].path)
    assert code == 1
    assert "takes no messages" in found["broker"]["found"]
    assert f"{rig.volumes['broker'].path} has 0 bytes" in found["disk"]["found"]
    new = list(rig.scene.workload.bodies)[-1]
    recovered(rig, "broker", lambda: rig.job(new).status in ("RUNNING", "COMPLETED"))
    until(lambda: rig.job(job).status == "COMPLETED", 60, "the job that trained meanwhile")
    assert rig.job(job).attempt == 1


def test_the_databases_of_the_api(rig: Rig) -> None:
    job = rig.training()
    known = len(rig.scene.workload.bodies)
    with Filled(rig.volumes["database"]):
        seen = requests_for(rig, 5)
        assert seen["503"] > 0
        ready, said = readiness(rig)
    assert ready == 503
    assert names(said, rig.volumes["database"].path)
    assert len(rig.scene.workload.bodies) == known + seen["201"]
    recovered(rig, "database", lambda: rig.scene.workload.submit(max_steps=2))
    until(lambda: rig.job(job).status == "COMPLETED", 60, "the job that trained meanwhile")
    assert rig.job(job).attempt == 1


def test_the_database_of_the_scheduler(rig: Rig) -> None:
    job = rig.training()
    with Filled(rig.volumes["home"]):
        requests_for(rig, 8)
        ready, said = readiness(rig)
    assert ready == 503
    assert names(said, rig.volumes["home"].path)
    new = list(rig.scene.workload.bodies)[-1]
    recovered(rig, "scheduler", lambda: rig.job(new).status in ("RUNNING", "COMPLETED"))
    until(lambda: rig.job(job).status == "COMPLETED", 60, "the job that trained meanwhile")
    assert rig.job(job).attempt == 1


def test_the_folder_of_the_jobs(rig: Rig) -> None:
    job = rig.training()
    with Filled(rig.volumes["jobs"]):
        assert_paused_for_room(rig, job, rig.volumes["jobs"].path)
        waiting = rig.scene.workload.submit(max_steps=2, save_steps=2)
        until(lambda: rig.job(waiting).reason == "disk_full", 20, "a new job says why it waits")
        assert names(rig.job(waiting).waiting_for, rig.volumes["jobs"].path)
        _, said = readiness(rig)
        assert names(said, rig.volumes["jobs"].path)
    recovered(rig, "jobs", lambda: rig.job(job).status == "RUNNING")
    until(lambda: rig.job(job).status == "COMPLETED", 60, "the job that was paused")
    assert rig.job(job).attempt == 2


def test_the_folder_of_the_checkpoints(rig: Rig) -> None:
    job = rig.training()
    before = {c["step"] for c in rig.checkpoints(job)}
    with Filled(rig.volumes["checkpoints"]):
        assert_paused_for_room(rig, job, rig.volumes["checkpoints"].path)
        assert before <= {c["step"] for c in rig.checkpoints(job)}
        _, said = readiness(rig)
        assert names(said, rig.volumes["checkpoints"].path)
    recovered(rig, "checkpoints", lambda: rig.job(job).status == "RUNNING")
    until(lambda: rig.job(job).status == "COMPLETED", 60, "the job that was paused")
    assert rig.job(job).attempt == 2


def test_the_logs_of_the_services(rig: Rig) -> None:
    """A service that dies is started again although it finds no room for its log, and none ends for want of it."""
    job = rig.training()
    with Filled(rig.volumes["logs"]):
        pids = {
            name: rig.scene.stack.pid_of(name) for name in ("services.api", "services.gpu_agent")
        }
        rig.scene.stack.kill("services.scheduler")
        assert set(requests_for(rig, 4)) == {"201"}
        new = rig.scene.workload.submit(max_steps=2, save_steps=2)
        until(lambda: rig.job(new).status == "COMPLETED", 60, "a job without room for logs")
        assert pids == {name: rig.scene.stack.pid_of(name) for name in pids}
    recovered(rig, "logs", lambda: rig.job(job).status in ("RUNNING", "COMPLETED"))
    assert os.path.getsize(rig.volumes["logs"].path / "api.log") > 0
