"""A submitted configuration becomes a job, or is refused with a sentence."""

from __future__ import annotations

from dataclasses import replace

from services.scheduler.core.decisions import ConfigSaved
from services.scheduler.core.draft import Draft
from services.scheduler.core.out_of_memory import micro_batch
from services.scheduler.core.readiness import select
from services.scheduler.core.state import Demand, Job, ModelRef
from shared.events.requests import JobSubmitRequested
from shared.jobs.lifecycle import Bilingual, Change, JobState
from shared.jobs.reasons import Reason
from shared.jobs.status import DisconnectPolicy
from shared.specs import (
    JobModel,
    JobSpec,
    SpecInvalid,
    dependencies,
    parse_model_path,
    spec_from_config,
)

MODEL_FIELDS = ("model_path", "ref_model_path", "reward_model_path")


def submit(draft: Draft, request: JobSubmitRequested) -> None:
    """Queue a new job, or reject it where this version cannot read its configuration."""
    order, draft.next_order = draft.next_order, draft.next_order + 1
    state = JobState(
        job=request.job,
        req_n=request.req_n,
        submitted_at=request.at,
        queued_at=draft.now.wall,
    )
    bare = Job(state, request.name, order, secret_names=request.secret_names)
    draft.decide(ConfigSaved(request.job, request.config))
    try:
        job = _read(bare, spec_from_config(request.config), request.gpu_memory_mib)
    except SpecInvalid as error:
        _reject(draft, bare, _sentence(error))
        return
    trouble = _impossible(draft, job, request)
    if trouble is not None:
        _reject(draft, job, trouble)
        return
    draft.change(opened(draft, job), Change.QUEUED)


def recall(draft: Draft, request: JobSubmitRequested, order: int) -> Job:
    """Return the job of a submit that was answered before; whatever was decided about it comes from elsewhere."""
    bare = Job(
        JobState(job=request.job, submitted_at=request.at), request.name, order,
        secret_names=request.secret_names,
    )  # fmt: skip
    try:
        return opened(draft, _read(bare, spec_from_config(request.config), request.gpu_memory_mib))
    except SpecInvalid:
        return bare


def opened(draft: Draft, job: Job) -> Job:
    """Return the job with what it must wait for in this opening of it, at submission and at each retry.

    A checkpoint of a job that had already ended otherwise than COMPLETED may be used by name: the user
    saw that end. A job named in `depends_on` must be COMPLETED in any case.
    """
    own = [c for c in job.checkpoints if not c.deleted and c.step > 0]
    frozen = job.frozen if own else ()
    ended_well_enough = set()
    for ref in job.models:
        source = draft.job(ref.job)
        if source is not None and source.is_ended and select(source.checkpoints, ref.selector):
            ended_well_enough.add(ref.job)
    explicit = set(job.depends_on)
    after = [*job.depends_on]
    after += [r.job for r in job.models if r.job not in explicit | ended_well_enough]
    return replace(job, after=tuple(dict.fromkeys(after)), frozen=frozen)


def _read(bare: Job, spec: JobSpec, gpu_memory_mib: int | None) -> Job:
    models = []
    for field, text in _model_texts(spec):
        source = parse_model_path(text)
        if isinstance(source, JobModel):
            models.append(ModelRef(field, source.job, str(source.selector)))
    named = {ref.job for ref in models}
    depends_on = [job for job in dependencies(spec) if job not in named or job in spec.depends_on]
    return replace(
        bare,
        state=bare.state.model_copy(update={"priority": spec.priority}),
        demand=Demand(
            num_gpus=spec.num_gpus,
            gpu_type=spec.gpu_type,
            pin=spec.ssh_host if spec.run_mode == "ssh" else spec.host,
            memory_mib=gpu_memory_mib or 0,
        ),
        micro_batch=micro_batch(spec),
        max_retries=spec.max_retries,
        policy=DisconnectPolicy(spec.disconnect_policy),
        depends_on=tuple(depends_on),
        models=tuple(models),
    )


def _model_texts(spec: JobSpec) -> list[tuple[str, str]]:
    """Return every parameter that may name a checkpoint, by its place: `rewards.1.reward_model_path` in a list."""
    found = [(field, getattr(spec, field, None)) for field in MODEL_FIELDS]
    for index, component in enumerate(getattr(spec, "rewards", None) or ()):
        found.append((f"rewards.{index}.reward_model_path", component.reward_model_path))
    return [(field, text) for field, text in found if text]


def _impossible(draft: Draft, job: Job, request: JobSubmitRequested) -> Bilingual | None:
    nodes = request.config.get("num_nodes", 1)
    if isinstance(nodes, int) and nodes > 1:
        return Bilingual(
            en="num_nodes above 1 is not offered by this version; use num_gpus on one host",
            zh="此版本不支持 num_nodes 大于 1，请在单台主机上使用 num_gpus",
        )
    if request.config.get("run_mode") == "ssh" and not request.config.get("host"):
        return Bilingual(
            en="run_mode ssh with ssh_host is not offered by this version; let the host join by `trainyard agent join` and name it in host",
            zh="此版本不支持通过 ssh_host 以 ssh 方式运行，请先用 `trainyard agent join` 让主机加入，再用 host 指定",
        )
    if _reaches_itself(draft, job):
        return Bilingual(
            en="it would wait for itself (depends_on)", zh="任务将等待自身（depends_on）"
        )
    return None


def _reaches_itself(draft: Draft, job: Job) -> bool:
    seen: set[str] = set()
    ahead = [*job.depends_on, *(ref.job for ref in job.models)]
    while ahead:
        one = ahead.pop()
        if one == job.id:
            return True
        other = draft.job(one)
        if one not in seen and other is not None:
            seen.add(one)
            ahead += [*other.depends_on, *(ref.job for ref in other.models)]
    return False


def _reject(draft: Draft, job: Job, message: Bilingual) -> None:
    draft.change(
        job,
        Change.REJECTED,
        reason=Reason.CONFIG_INVALID,
        message=message,
        finished_at=draft.now.wall,
    )


def _sentence(error: SpecInvalid) -> Bilingual:
    first = error.errors[0]
    return Bilingual(en=first.message_en, zh=first.message_zh)
