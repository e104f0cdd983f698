"""Keeps one attempt: takes its locks, starts or adopts the trainer, reaps it, clears what it left, writes `exit.json`.

Run as `python -I -S shim.py start|adopt …`: it imports the standard library alone, so that it stays small for days.
It outlives the agent. A lock is held as long as any process of the run has inherited its descriptor.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

EX_LOCKED = 75
EX_USED = 76
EX_START = 77
LOCK_PATIENCE = 1.0
"""Seconds: the agent looks at locks by taking them for a moment."""
LEASE_TICK = 2.0
PR_SET_CHILD_SUBREAPER = 36


class Locked(Exception):
    """A lock is held by another run."""


def take_locks(paths: Iterable[str], holder: str) -> list[int]:
    """Open and lock every file, in order; return the descriptors. Raises Locked with the path."""
    taken: list[int] = []
    deadline = time.monotonic() + LOCK_PATIENCE
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - pathlib costs memory
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    for other in (*taken, fd):
                        os.close(other)
                    raise Locked(path) from None
                time.sleep(0.01)
        os.ftruncate(fd, 0)
        os.pwrite(fd, holder.encode(), 0)
        taken.append(fd)
    return taken


def write_json(path: str, document: dict[str, Any]) -> None:
    """Replace `path` by `document`, durably; in the room set aside for it, if any (shared/disk/reserve.py)."""
    room = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.room")  # noqa: PTH118, PTH119, PTH120
    temporary = room if os.path.exists(room) else f"{path}.{os.getpid()}.tmp"  # noqa: PTH110
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(json.dumps(document).encode())
        file.truncate()
        os.fsync(fd)
    os.replace(temporary, path)  # noqa: PTH105
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)  # noqa: PTH120
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: str) -> dict[str, Any] | None:
    """Return the document, or None where there is none that can be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return dict(json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def stat_fields(pid: int) -> tuple[int, int, int] | None:
    """Return (parent, session, start time) of a process in clock ticks, or None where it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[1]), int(fields[3]), int(fields[19])


def boot_id() -> str:
    """Return the id that changes with each boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
        return file.read().strip()


def identity(pid: int) -> dict[str, int]:
    """Return {"pid", "start_time"} of a live process."""
    return {"pid": pid, "start_time": (stat_fields(pid) or (0, 0, 0))[2]}


def become_subreaper() -> None:
    """Let orphans of the trainer come to this process instead of to init."""
    import ctypes  # noqa: PLC0415 - the adopting shim keeps the setting over exec and never needs it

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def read_launch(attempt_dir: str) -> dict[str, Any]:
    """Return `launch.json`, which the agent wrote before the start. Raises OSError or ValueError."""
    with open(os.path.join(attempt_dir, "launch.json"), "rb") as file:  # noqa: PTH118, PTH123
        return dict(json.load(file))


def trainer_env(launch: dict[str, Any]) -> dict[str, str]:
    """Return this process's environment as the run wants it; the launch file holds no value that may be secret."""
    kept = {k: v for k, v in os.environ.items() if k not in launch["drop_env"]}
    kept.update(launch["env"])
    return kept


def claim(attempt_dir: str, who: str) -> bool:
    """Decide once between a shim that begins and an agent that gives up: a link is made whole, or not at all."""
    path = os.path.join(attempt_dir, "claim")  # noqa: PTH118
    with contextlib.suppress(FileExistsError):
        os.symlink(who, path)  # noqa: PTH211
    return os.readlink(path) == who  # noqa: PTH115


def begin(attempt_dir: str, launch: dict[str, Any]) -> list[int]:
    """Take the locks and mark the attempt as used; return the descriptors.

    Raises Locked, or FileExistsError when the attempt was used before, the agent has given it up, or its lease is over.
    """
    for fd in take_locks(launch.get("rank_locks", ()), launch["holder"]):
        os.close(fd)  # free, so no rank of an earlier attempt lives; each rank takes its own
    locks = take_locks(launch["locks"], launch["holder"])
    used = os.path.join(attempt_dir, "pid.json")  # noqa: PTH118
    before = any(os.path.exists(os.path.join(attempt_dir, n)) for n in ("pid.json", "exit.json"))  # noqa: PTH110, PTH118
    if before or is_overdue(launch) or not claim(attempt_dir, f"shim {os.getpid()}"):
        raise FileExistsError(used)
    write_json(used, {"shim": identity(os.getpid()), "trainer": None, "boot_id": boot_id()})
    return locks


def is_overdue(launch: dict[str, Any]) -> bool:
    """Tell whether the host slept since the agent's start for so long that the trainer would have to stop at once."""
    lease = launch.get("leased") or {}
    counts = launch.get("policy") == "stop_and_requeue" and lease.get("boot_id") == boot_id()
    return bool(counts and now() > lease["renewed"] + launch["stop_after"] * 0.98)


def record(attempt_dir: str, trainer: int, *, warm: bool) -> None:
    """Write `pid.json` with both processes; `warm`: the trainer was forked with its libraries loaded."""
    both = {"shim": identity(os.getpid()), "trainer": identity(trainer)}
    write_json(f"{attempt_dir}/pid.json", {**both, "boot_id": boot_id(), "warm": warm})


def report(fd: int, document: dict[str, Any]) -> None:
    """Tell whoever started this run how the start went, and close the descriptor."""
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(document).encode())
    os.close(fd)


def enter_trainer(launch: dict[str, Any], kept: Iterable[int]) -> None:
    """In the child that becomes the trainer: signals, standard streams, descriptors, as the run wants them."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    log_to(launch["log"])
    close_all_but(kept)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("500")  # the kernel should take a trainer before the agent


def log_to(path: str) -> None:
    """Read nothing, and append standard output and error to the log."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    if log > 2:
        os.close(log)


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor above 2 that is not named."""
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)


def start(attempt_dir: str, ready: int, secrets: int | None) -> int:
    """Start the trainer by exec, and keep it. Returns the exit status."""
    launch = read_launch(attempt_dir)
    if os.getsid(0) != os.getpid():
        os.setsid()
    become_subreaper()
    try:
        locks = begin(attempt_dir, launch)
    except Locked as error:
        report(ready, {"error": "locked", "path": str(error)})
        return EX_LOCKED
    except FileExistsError:
        report(ready, {"error": "used"})
        return EX_USED
    argv = list(launch["argv"])
    if secrets is not None:
        argv += ["--secrets-fd", str(secrets)]
    kept = locks if secrets is None else [*locks, secrets]
    trainer = os.fork()
    if trainer == 0:
        try:
            enter_trainer(launch, kept)
            for fd in kept:
                os.set_inheritable(fd, True)
            os.execve(argv[0], argv, trainer_env(launch))
        except BaseException as error:  # noqa: BLE001 - nothing may come back from a forked child
            os.write(2, f"[ERROR] The trainer could not be started: {error}\n".encode())
        finally:
            os._exit(EX_START)
    if secrets is not None:
        os.close(secrets)
    record(attempt_dir, trainer, warm=False)
    report(ready, {"ok": True, "trainer": trainer, "shim": os.getpid(), "warm": False})
    return keep(attempt_dir, trainer, locks, launch)


def keep(attempt_dir: str, trainer: int, locks: Sequence[int], launch: dict[str, Any]) -> int:
    """Wait for the trainer, watch the lease, clear up, write `exit.json`. Returns the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    log_to(launch["log"])
    close_all_but(locks)
    kills_before = oom_kills()
    status, lease_lost = wait_for(attempt_dir, trainer, launch)
    leftovers = clear_session()
    code = os.waitstatus_to_exitcode(status)
    write_json(
        os.path.join(attempt_dir, "exit.json"),  # noqa: PTH118
        {
            "exit_code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "oom_kill": oom_kills() > kills_before,
            "time": time.time(),
            "leftovers": leftovers,
            "lease_lost": lease_lost,
        },
    )
    return 0


def wait_for(attempt_dir: str, trainer: int, launch: dict[str, Any]) -> tuple[int, bool]:
    """Return (wait status of the trainer, whether it was stopped for want of a lease)."""
    watch = LeaseWatch(attempt_dir, trainer, launch)
    wake, bell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    while True:
        status = reap(trainer)
        if status is not None:
            signal.set_wakeup_fd(-1)
            os.close(wake)
            os.close(bell)
            return status, watch.lost
        select.select([wake], [], [], watch.tick)
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        watch.look()


def reap(trainer: int) -> int | None:
    """Collect every child that has ended; return the trainer's wait status once it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == trainer:
                found = ended[1]
    return found


class LeaseWatch:
    """With the policy `stop_and_requeue`: stops the trainer when the host has had no lease for too long."""

    def __init__(self, attempt_dir: str, trainer: int, launch: dict[str, Any]) -> None:
        """Take what the launch says about policy, lease file and grace."""
        self.attempt_dir = attempt_dir
        self.trainer = trainer
        self.active = launch["policy"] == "stop_and_requeue"
        self.path = launch["lease"]
        self.after = launch["stop_after"] * 0.98  # clocks drift; stop before the scheduler requeues
        self.grace = launch["grace"]
        self.tick = LEASE_TICK if self.active else 60.0
        # not what the file says by now: the host may have been frozen between the agent's start and here
        lease = launch.get("leased") or read_json(self.path) or {}
        self.renewed = lease["renewed"] if lease.get("boot_id") == boot_id() else now()
        self.lost, self.kill_at = False, 0.0

    def look(self) -> None:
        """Stop the trainer if the lease has run out: SIGTERM, and SIGKILL after the grace."""
        if not self.active:
            return
        if not self.lost:
            lease = read_json(self.path) or {}
            # renewed after it had run out (the host was frozen): the job may have been given away meanwhile
            if lease.get("boot_id") == boot_id() and lease["renewed"] <= self.renewed + self.after:
                self.renewed = lease["renewed"]
            if now() <= self.renewed + self.after:
                return
            self.lost, self.kill_at = True, self.renewed + self.after + self.grace
            deadline = time.time() + self.kill_at - now()
            write_json(f"{self.attempt_dir}/stop.json", {"mode": "requeue", "deadline": deadline})
            os.kill(self.trainer, signal.SIGTERM)  # not reaped yet: the pid is still its own
        if now() > self.kill_at:
            os.kill(self.trainer, signal.SIGKILL)


def now() -> float:
    """Return seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def oom_kills() -> int:
    """Return how often the kernel killed for memory in this process's cgroup (v2, then v1); 0 where unknown."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/cgroup") as file:  # noqa: PTH123
            groups = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
        candidates = (
            f"/sys/fs/cgroup{groups.get('', '/')}/memory.events",
            f"/sys/fs/cgroup/unified{groups.get('', '/')}/memory.events",
            f"/sys/fs/cgroup/memory{groups.get('memory', '/')}/memory.oom_control",
        )
        for path in candidates:
            with contextlib.suppress(OSError), open(path) as file:  # noqa: PTH123
                counts = dict(line.split()[:2] for line in file)
                if "oom_kill" in counts:
                    return int(counts["oom_kill"])
    return 0


def members() -> set[int]:
    """Return the processes of this session and all descendants, without this process."""
    me = os.getpid()
    parents, session = {}, set()
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit():
            continue
        fields = stat_fields(int(name))
        if fields is None:
            continue
        parents[int(name)] = fields[0]
        if fields[1] == me:
            session.add(int(name))
    mine = {me, *session}
    while more := {p for p, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return mine - {me}


def clear_session() -> int:
    """End what the trainer left behind: SIGTERM, a second, SIGKILL; return how many are still there after 5 s."""
    for number, patience in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        for pid in members():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        while members() and time.monotonic() < deadline:
            reap(0)
            time.sleep(0.02)
        reap(0)
        if not members():
            return 0
    return len(members())


def main(argv: Sequence[str]) -> int:
    """`start ATTEMPT_DIR READY_FD [SECRETS_FD]` or `adopt ATTEMPT_DIR TRAINER_PID LOCK_FD,LOCK_FD…`."""
    verb, attempt_dir = argv[1], argv[2]
    if verb == "start":
        secrets = int(argv[4]) if len(argv) > 4 else None
        return start(attempt_dir, int(argv[3]), secrets)
    # adopt: this process forked the trainer before it became this program
    locks = [int(fd) for fd in argv[4].split(",")]
    return keep(attempt_dir, int(argv[3]), locks, read_launch(attempt_dir))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
