"""Names of the files of a host, a job and an attempt; nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.runs import EVENTS_FILE, RESULT_FILE, SPEC_FILE, STOP_FILE


@dataclass(frozen=True, slots=True)
class AttemptFiles:
    """`{work_dir}/{job}/attempts/<n>/`, written by agent, shim and trainer, each its own files."""

    root: Path

    @property
    def number(self) -> int:
        """The attempt's number."""
        return int(self.root.name)

    @property
    def entry(self) -> Path:
        """The control entry as it was when the attempt was taken on."""
        return self.root / "entry.json"

    @property
    def spec(self) -> Path:
        """What the trainer reads."""
        return self.root / SPEC_FILE

    @property
    def launch(self) -> Path:
        """What the shim reads: locks, environment, command, policy."""
        return self.root / "launch.json"

    @property
    def events(self) -> Path:
        """What the trainer says."""
        return self.root / EVENTS_FILE

    @property
    def system(self) -> Path:
        """Samples of GPU, memory and CPU, by the agent."""
        return self.root / "system.jsonl"

    @property
    def facts(self) -> Path:
        """The agent's run facts, one line a sequence number."""
        return self.root / "facts.jsonl"

    @property
    def relay(self) -> Path:
        """How far the bus and the api have it."""
        return self.root / "relay.json"

    @property
    def gaps(self) -> Path:
        """Parts of the log that were given up."""
        return self.root / "gaps.json"

    @property
    def skipped(self) -> Path:
        """Checkpoints in the job's folder that do not belong to its history."""
        return self.root / "skipped.json"

    @property
    def stop(self) -> Path:
        """Why the run is asked to stop."""
        return self.root / STOP_FILE

    @property
    def verdict(self) -> Path:
        """What the agent found out about the run before it ended, such as `stalled`."""
        return self.root / "verdict.json"

    @property
    def result(self) -> Path:
        """The trainer's own words on how it ended."""
        return self.root / RESULT_FILE

    @property
    def exit(self) -> Path:
        """The shim's words: exit code or signal."""
        return self.root / "exit.json"

    @property
    def pid(self) -> Path:
        """Processes of the run; that it exists means that the attempt was used."""
        return self.root / "pid.json"

    @property
    def last_words(self) -> tuple[Path, ...]:
        """Files for which room is set aside: without them nobody would know how the run ended."""
        return (self.result, self.exit, self.stop, self.verdict)


@dataclass(frozen=True, slots=True)
class JobFiles:
    """`{work_dir}/{job}/`."""

    root: Path

    @property
    def job(self) -> str:
        """The job's id."""
        return self.root.name

    @property
    def lock(self) -> Path:
        """Held by shim and trainer while the run lives."""
        return self.root / "lock"

    def rank_lock(self, rank: int) -> Path:
        """Return the lock that one of several ranks holds."""
        return self.root / f"{self.lock.name}.{rank}"

    @property
    def log(self) -> Path:
        """Standard output and error of all attempts, appended."""
        return self.root / "logs" / "train.log"

    @property
    def attempts(self) -> Path:
        """Folder of the attempts."""
        return self.root / "attempts"

    def attempt(self, number: int) -> AttemptFiles:
        """Return the files of one attempt."""
        return AttemptFiles(self.attempts / str(number))


@dataclass(frozen=True, slots=True)
class HostFiles:
    """`{agent_home}`, the jobs' folder, and where checkpoints lie."""

    home: Path
    work_dir: Path
    checkpoint_root: Path | None
    """One folder for the checkpoints of all jobs (embedded host), or None: `{work_dir}/{job}/checkpoints`."""

    @property
    def host(self) -> Path:
        """The host's id."""
        return self.home / "host.json"

    @property
    def restored(self) -> Path:
        """Id of the last restore of the stack's databases after which everything here was confirmed again."""
        return self.home / "restored"

    @property
    def instance_lock(self) -> Path:
        """Held by the one agent of this home."""
        return self.home / "agent.lock"

    @property
    def ready(self) -> Path:
        """Exists while an agent runs and has adopted what was there."""
        return self.home / "agent.json"

    @property
    def stop_jobs(self) -> Path:
        """That it exists at SIGTERM asks the agent to stop all runs first."""
        return self.home / "stop-jobs"

    @property
    def lease(self) -> Path:
        """Read by every shim."""
        return self.home / "lease.json"

    @property
    def zygote_log(self) -> Path:
        """What the zygote says."""
        return self.home / "logs" / "zygote.log"

    def gpu_lock(self, uuid: str) -> Path:
        """Return the lock of one GPU or CPU slot."""
        return self.home / "locks" / f"{uuid}.lock"

    def job(self, job: str) -> JobFiles:
        """Return the files of one job."""
        return JobFiles(self.work_dir / job)

    def checkpoints(self, job: str) -> Path:
        """Return where the checkpoints of one job lie."""
        if self.checkpoint_root is not None:
            return self.checkpoint_root / job
        return self.work_dir / job / "checkpoints"
