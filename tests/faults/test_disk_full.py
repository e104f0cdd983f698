"""Every volume of a real stack is filled to the last byte while jobs train and requests come in, then freed.

Nothing acknowledged is lost, every refusal and every pause names path, need and have, the last good checkpoint stays,
and all goes on by itself within 30 s. One stack for all of it; a volume for each folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import until
from tests.faults.disk_rig import (
    FOLDERS,
    Filled,
    Rig,
    assert_paused_for_room,
    doctor,
    names,
    readiness,
    recovered,
    requests_for,
    stack_on_small_volumes,
)
from tests.faults.volumes import needs_root

pytestmark = [pytest.mark.e2e, needs_root]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Rig]:
    home = tmp_path_factory.mktemp("full") / "home"
    with stack_on_small_volumes(home, tiny_model, *FOLDERS) as rig:
        yield rig
        report = rig.scene.finish("full disks", 1, Counter(), 240)
        print(report)
        assert report.violations == [], str(report)


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
    rig.completes(job, "the job that trained meanwhile")
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
    rig.completes(job, "the job that trained meanwhile")
    assert rig.job(job).attempt == 1


def test_the_database_of_the_scheduler(rig: Rig) -> None:
    job = rig.training()
    with Filled(rig.volumes["home"]):
        requests_for(rig, 3)
        # what it has open may still have room: one that begins on a full disk finds none
        rig.scene.stack.kill("services.scheduler")
        requests_for(rig, 5)
        ready, said = readiness(rig)
    assert ready == 503
    assert names(said, rig.volumes["home"].path)
    new = list(rig.scene.workload.bodies)[-1]
    recovered(rig, "scheduler", lambda: rig.job(new).status in ("RUNNING", "COMPLETED"))
    rig.completes(job, "the job that trained meanwhile")
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
    recovered(rig, "jobs", lambda: rig.job(job).status in ("RUNNING", "COMPLETED"))
    rig.completes(job, "the job that was paused")
    assert rig.job(job).attempt == 2


def test_the_folder_of_the_checkpoints(rig: Rig) -> None:
    job = rig.training()
    before = {c["step"] for c in rig.checkpoints(job)}
    with Filled(rig.volumes["checkpoints"]):
        assert_paused_for_room(rig, job, rig.volumes["checkpoints"].path)
        assert before <= {c["step"] for c in rig.checkpoints(job)}
        _, said = readiness(rig)
        assert names(said, rig.volumes["checkpoints"].path)
    recovered(rig, "checkpoints", lambda: rig.job(job).status in ("RUNNING", "COMPLETED"))
    rig.completes(job, "the job that was paused")
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
    rig.completes(job, "the job that trained meanwhile")
    assert (rig.volumes["logs"].path / "api.log").stat().st_size > 0
