"""What the scheduler knows, as frozen values: jobs, hosts, who holds which GPU, the queue, requests that wait for a gap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from pathlib import PurePosixPath

from services.scheduler.core.order import Queue, Rank
from services.scheduler.core.words import Why
from shared.disk.levels import START_BYTES, Volume, fullest
from shared.events.requests import JobRequest
from shared.jobs.lifecycle import JobState
from shared.jobs.resources import GpuInfo, HostInventory
from shared.jobs.status import DisconnectPolicy, JobStatus


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant on two clocks: `wall` for records and hours, `boot` (seconds, suspend included) for leases."""

    wall: datetime
    boot: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines and bounds, in seconds where no unit is named (reliability.md section 2)."""

    lease_ttl: float = 30.0
    drift: float = 0.02
    grace: float = 5.0
    stop_after: float = 600.0
    """With `stop_and_requeue` the shim stops the trainer this long after the last renewal."""
    kill_grace: float = 30.0
    requeue_margin: float = 30.0
    lost_after: timedelta = timedelta(hours=24)
    reboot_grace: float = 30.0
    """After a reboot the agent has this long to report how its runs ended."""
    vanished_after: float = 600.0
    """A run that its live host does not report, or reports as ended without the fact, for this long is over."""
    backoff_first: float = 2.0
    backoff_last: float = 300.0
    refusal_exclusion: float = 5.0
    """How long a host that refused a job is left alone by it at first; doubles, up to `backoff_last`."""
    setbacks_at_most: int = 50
    """Attempts in a row that ended without a new checkpoint and without a verdict on the job."""
    unknown_dependency: float = 600.0

    @property
    def silent_after(self) -> float:
        """Return the age of a lease at which its host counts as silent."""
        return self.lease_ttl * (1 + self.drift) + self.grace

    @property
    def requeue_after(self) -> float:
        """Return the age of a lease at which `stop_and_requeue` may place the job again."""
        return self.stop_after * (1 + self.drift) + self.kill_grace + self.requeue_margin


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job asks of one host."""

    num_gpus: int = 1
    gpu_type: str | None = None
    pin: str | None = None
    """Id or label of the only host that will do."""
    memory_mib: int = 0
    """Estimate for each GPU; 0 where none was made."""
    outgrown_mib: int = 0
    """Memory of the GPU on which it ran out: larger ones are preferred."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A parameter that names a checkpoint of another job."""

    field: str
    """`model_path`, or its place such as `rewards.0.reward_model_path`."""
    job: str
    selector: str
    """`last`, `best`, or a step in digits."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on a host; the newest fact, by (attempt, seq), wins per step."""

    step: int
    path: str
    host: str
    attempt: int
    seq: int
    kind: str = "full"
    best: bool = False
    last: bool = False
    deleted: bool = False
    shared_root: str | None = None
    """The folder, declared the same on several hosts, that it lies below."""
    manifest_hash: str = ""
    size_bytes: int = 0
    metrics: tuple[tuple[str, float | None], ...] = ()

    @property
    def location(self) -> str:
        """Return where it can be read: a host id, or a shared folder (which starts with a slash)."""
        return self.shared_root or self.host

    @property
    def folder(self) -> str:
        """Return the folder that holds this job's checkpoints."""
        return str(PurePosixPath(self.path).parent)


@dataclass(frozen=True, slots=True)
class Short:
    """Room that the job found missing on a host: it does not begin there before the volume has `need` bytes."""

    host: str
    path: str
    need: int


class Phase(StrEnum):
    """How far an open attempt is known to have come."""

    ASSIGNED = "assigned"
    ACCEPTED = "accepted"
    STARTED = "started"


@dataclass(frozen=True, slots=True)
class Run:
    """The open attempt of a job: it holds its GPUs until it is settled."""

    attempt: int
    host: str
    gpus: tuple[int, ...]
    gpu_uuids: tuple[str, ...]
    since: datetime
    phase: Phase = Phase.ASSIGNED
    boot_id: str | None = None
    missing_since: float | None = None
    """Boot-clock second since when its live host does not vouch for it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job: the published state, and what only the scheduler needs to decide about it."""

    state: JobState
    name: str
    order: int
    """Place in the order of arrival: the age. A job that is placed again keeps it."""
    demand: Demand = Demand()
    micro_batch: int = 0
    """Rows of one forward pass as they were asked for; 0: not known, for jobs of older versions."""
    oom_halvings: int = 0
    """How often they are halved, since attempts ran out of memory."""
    max_retries: int = 1
    policy: DisconnectPolicy = DisconnectPolicy.KEEP
    depends_on: tuple[str, ...] = ()
    """Jobs that must be COMPLETED first."""
    after: tuple[str, ...] = ()
    """Those of `depends_on` that count for this opening: see requests.opened."""
    models: tuple[ModelRef, ...] = ()
    frozen: tuple[tuple[str, str, str], ...] = ()
    """(field, path, location) of each ModelRef once it was assigned."""
    secret_names: tuple[str, ...] = ()
    run: Run | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    not_before: datetime | None = None
    avoid: tuple[tuple[str, datetime], ...] = ()
    """Hosts that refused it, and until when they are not asked again."""
    short: tuple[Short, ...] = ()
    lost_hosts: tuple[str, ...] = ()
    """Hosts that the user, or a day of silence, wrote off: checkpoints there bind no longer."""
    hosts: tuple[str, ...] = ()
    """Every host it ever was assigned to: its files lie there."""
    setbacks: int = 0
    resume_after_stop: bool = False
    attempt_floor: int = 0
    """Highest attempt number heard of anywhere, even from hosts that know more than this database."""

    @property
    def id(self) -> str:
        """Return the job's id."""
        return self.state.job

    @property
    def rank(self) -> Rank:
        """Return its place among waiting jobs: priority first, then age."""
        return (-self.state.priority, self.order, self.state.job)

    @property
    def waits(self) -> bool:
        """Tell whether it wants a host and has none."""
        return self.state.status is JobStatus.PENDING and self.run is None

    @property
    def is_ended(self) -> bool:
        """Tell whether only a user's retry can make it run again."""
        return self.state.status.is_terminal


@dataclass(frozen=True)
class Host:
    """One host: what its agent reported, its lease, and which jobs hold its GPUs."""

    id: str
    label: str
    inventory: HostInventory | None = None
    online: bool = False
    lost: bool = False
    """Silent for `lost_after`."""
    drained: bool = False
    forgotten: bool = False
    seen: Moment | None = None
    """When it was last heard; its agent may hold a lease from then on, whether or not it hears us."""
    deaf_since: float | None = None
    """Boot-clock second since when its heartbeats tell that our answers do not arrive."""
    instance: str = ""
    retired: tuple[str, ...] = ()
    """Earlier instances: one that speaks again after its successor is a second agent of the same id."""
    boot_id: str = ""
    began: float = 0.0
    """Seconds after that boot at which the instance began."""
    boot_seen: float = 0.0
    """Boot-clock second (of the scheduler) at which this boot id was first heard of."""
    req_n: int = 0
    runs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Job → GPU indexes it holds here by our own books."""
    stops: Mapping[str, int] = field(default_factory=dict)
    """Job → stale attempt that the host is told to stop."""

    @cached_property
    def working(self) -> tuple[GpuInfo, ...]:
        """Return the GPUs that are ours to give: not held from outside our books."""
        gpus = self.inventory.gpus if self.inventory else ()
        return tuple(g for g in gpus if g.held_by is None or g.held_by in self.runs)

    @cached_property
    def free(self) -> tuple[GpuInfo, ...]:
        """Return the GPUs that nobody holds, neither by our books nor by a lock on the host."""
        taken = {index for indexes in self.runs.values() for index in indexes}
        return tuple(g for g in self.working if g.held_by is None and g.index not in taken)

    @cached_property
    def full(self) -> Volume | None:
        """Return the volume that has no room for a new run, or None."""
        volumes = self.inventory.volumes if self.inventory else ()
        worst = fullest(volumes)
        return worst if worst is not None and worst.free < START_BYTES else None

    @cached_property
    def shape(self) -> Shape:
        """Return what hosts have in common that are alike for any demand, but for who is busy."""
        inventory = self.inventory
        kinds = tuple(sorted({(g.name, g.memory_mib) for g in self.working}))
        return Shape(
            online=self.online and not self.forgotten,
            drained=self.drained,
            full=self.full is not None,
            cuda=inventory is not None and inventory.device != "cpu",
            kinds=kinds,
            total=len(self.working),
        )

    @cached_property
    def offer(self) -> tuple[object, ...]:
        """Return all of a host that `schedule` looks at but for what only breaks ties, such as memory in use."""
        paths = self.inventory.shared_paths if self.inventory else ()
        free = tuple((g.index, g.uuid, g.name, g.memory_mib) for g in self.free)
        working = tuple(g.uuid for g in self.working)
        return (self.label, self.lost, self.shape, free, working, paths)

    def can_read(self, location: str) -> bool:
        """Tell whether a checkpoint at `location` lies on this host or on a folder it shares."""
        if not location.startswith("/"):
            return location == self.id
        return self.inventory is not None and location in self.inventory.shared_paths


@dataclass(frozen=True, slots=True)
class Shape:
    """See `Host.shape`."""

    online: bool
    drained: bool
    full: bool
    """A volume of it has no room for a new run."""
    cuda: bool
    kinds: tuple[tuple[str, int], ...]
    """(name, memory in MiB) of its GPUs."""
    total: int

    @property
    def is_open(self) -> bool:
        """Tell whether new runs may start on such a host at all."""
        return self.online and not self.drained and not self.full


@dataclass(frozen=True)
class ClusterState:
    """Everything that decisions depend on. `step` makes the next one; nothing changes it in place."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    """Unfinished jobs, those they depend on, and ended ones that were looked up lately."""
    hosts: Mapping[str, Host] = field(default_factory=dict)
    queue: Queue = field(default_factory=Queue)
    dependents: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Job → unfinished jobs that wait for it."""
    reservations: Mapping[str, str] = field(default_factory=dict)
    """Job → host whose GPUs are kept for it."""
    untold: frozenset[str] = frozenset()
    """Waiting jobs of which nobody was told yet why they wait."""
    held: Mapping[str, tuple[JobRequest, ...]] = field(default_factory=dict)
    """Requests that came before an earlier one of the same job."""
    next_order: int = 1
    limits: Limits = Limits()


def may_place(before: ClusterState, after: ClusterState) -> bool:
    """Tell whether `schedule` could decide otherwise now; most heartbeats change nothing that it looks at."""
    if before.queue is not after.queue or len(before.hosts) != len(after.hosts):
        return True
    return any(
        (old := before.hosts.get(host_id)) is not new and (old is None or old.offer != new.offer)
        for host_id, new in after.hosts.items()
    )


@dataclass(frozen=True, slots=True)
class Assignment:
    """One job to one host."""

    job: str
    host: str
    gpus: tuple[int, ...]
    gpu_uuids: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What `schedule` wants done, as data."""

    assignments: tuple[Assignment, ...] = ()
    reservations: Mapping[str, str] = field(default_factory=dict)
    unready: Mapping[str, Why] = field(default_factory=dict)
    """Jobs that no host was looked at for."""
    blocked: tuple[tuple[Why, tuple[Rank, ...]], ...] = ()
    """Groups of equal demands that found no room, with one reason for all."""
    partial: bool = False
    """The bound on assignments was met: decide again after carrying these out."""

    @cached_property
    def waiting(self) -> Mapping[str, Why]:
        """Return every job that waits, with the reason in words; made when asked for, since it is long."""
        found = dict(self.unready)
        for why, ranks in self.blocked:
            found.update(dict.fromkeys([rank[-1] for rank in ranks], why))
        return found
