"""Checks of a job's files and figures before it is accepted; unchanged files are looked at once."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from services.api.jobs.placement import KnownHost, Place
from shared.errors import FieldProblem
from shared.preflight.batch import BatchPlan, arrange, total_steps
from shared.preflight.dataset import DatasetReport, check_dataset
from shared.preflight.disk import DiskEstimate, check_free, estimate_checkpoints
from shared.preflight.finding import Finding, shown
from shared.preflight.memory import (
    MemoryEstimate,
    RunShape,
    check_memory,
    estimate_memory,
    lora_parameters,
)
from shared.preflight.model import ModelReport, check_model
from shared.preflight.paths import Refusal, looks_like_hub_id, resolve_allowed
from shared.settings import PROJECT_ROOT
from shared.specs import HubModel, JobModel, JobSpec, StageModel, advise, parse_model_path

T = TypeVar("T")
CACHED = 256
LARGEST_CHECKED = 512 << 20
"""Bytes of a dataset read at submit; a larger one is checked by the host before it trains."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the checks need to know beside the spec."""

    place: Place
    roots: tuple[Path, ...] | None
    checkpoint_dir: Path
    hosts: tuple[KnownHost, ...] = ()


@dataclass(slots=True)
class Findings:
    """What was found; errors stop the job, warnings do not."""

    errors: list[FieldProblem] = field(default_factory=list)
    warnings: list[FieldProblem] = field(default_factory=list)
    estimates: dict[str, int | None] = field(default_factory=dict)

    def add(self, found: Iterable[Finding], *, certain: bool = True, about: str = "") -> None:
        """Take findings over; where it is not `certain` that this machine matters, as warnings."""
        for finding in found:
            problem = _problem(finding, about)
            serious = finding.severity == "error" and certain
            (self.errors if serious else self.warnings).append(problem)


class _Cache(Generic[T]):
    """The last answers by key; threads may ask at once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return made


class Preflight:
    """The checks with their caches; `check` blocks on the disk and belongs in a thread."""

    def __init__(self) -> None:
        """Start with nothing known."""
        self._datasets: _Cache[DatasetReport] = _Cache(CACHED)
        self._models: _Cache[ModelReport] = _Cache(CACHED)

    def check(self, spec: JobSpec, around: Surroundings) -> Findings:
        """Return everything that can be told about a spec before it runs."""
        found = Findings()
        for advice in advise(spec):
            found.warnings.append(
                FieldProblem(
                    advice.field, None, advice.message_en, advice.message_zh, None, advice.code
                )
            )
        train = model = None
        if around.place is not Place.ELSEWHERE:
            train = self._dataset(spec, "train_data_path", spec.train_data_path, around, found)
            if spec.eval_data_path:
                self._dataset(spec, "eval_data_path", spec.eval_data_path, around, found)
            conversational = train.conversational if train else False
            model = self._model(spec, conversational, around, found)
        plan = self._batch(spec, train, found)
        if model is not None and model.parameters is not None:
            self._sizes(spec, model, plan, around, found)
        return found

    def _dataset(
        self, spec: JobSpec, field: str, text: str, around: Surroundings, found: Findings
    ) -> DatasetReport | None:
        certain = around.place is Place.HERE
        path = resolve_allowed(text, around.roots, base=PROJECT_ROOT, field=field)
        if isinstance(path, Refusal):
            # Where the folder may not be looked into, org/name can only be meant for the Hub.
            if not looks_like_hub_id(text):
                found.add([path], certain=certain)
            return None
        stat = _stat(path)
        if stat is None and looks_like_hub_id(text):
            return None
        if stat is not None and stat.st_size > LARGEST_CHECKED:
            found.add([_too_large(field, text)])
            return None
        answer_key = getattr(spec, "reward_fn_answer_key", None)
        key = (path, stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino), spec.algorithm)
        report = (
            self._datasets.get(
                (*key, answer_key),
                lambda: check_dataset(path, spec.algorithm, answer_key, field=field),
            )
            if stat is not None
            else check_dataset(path, spec.algorithm, answer_key, field=field)
        )
        listed = [dataclasses.replace(f, field=field) for f in report.errors + report.warnings]
        found.add(listed, certain=certain, about=text)
        return report if report.ok else None

    def _model(
        self, spec: JobSpec, conversational: bool, around: Surroundings, found: Findings
    ) -> ModelReport | None:
        source = parse_model_path(spec.model_path)
        if isinstance(source, (JobModel, StageModel)):
            return None
        text = source.repo if isinstance(source, HubModel) else source.path
        path = resolve_allowed(text, around.roots, base=PROJECT_ROOT, field="model_path")
        if isinstance(path, Refusal):
            if not isinstance(source, HubModel):
                found.add([path], certain=around.place is Place.HERE)
            return None
        stat = _stat(path)
        if stat is None and isinstance(source, HubModel):
            found.add([f for f in check_model(text).warnings if "/" in text])
            return None
        config = _stat(path / "config.json") or _stat(path / "adapter_config.json")
        key = (path, stat and stat.st_mtime_ns, config and (config.st_mtime_ns, config.st_size))
        report = (
            self._models.get(
                (*key, conversational), lambda: check_model(path, conversational=conversational)
            )
            if stat is not None
            else check_model(path, conversational=conversational)
        )
        listed = [
            dataclasses.replace(f, field="model_path") for f in (*report.errors, *report.warnings)
        ]
        found.add(listed, certain=around.place is Place.HERE, about=text)
        return report if report.ok else None

    def _batch(
        self, spec: JobSpec, train: DatasetReport | None, found: Findings
    ) -> BatchPlan | None:
        world = spec.num_gpus * spec.num_nodes
        plan = arrange(
            spec.algorithm,
            spec.batch_size,
            spec.gradient_accumulation_steps,
            rollout_n=getattr(spec, "rollout_n", 1),
            world_size=world,
        )
        if isinstance(plan, Finding):
            found.add([plan])
            return None
        found.add(plan.notes)
        found.estimates["effective_batch"] = plan.effective
        if train is not None:
            found.estimates["rows"] = train.rows
            steps = total_steps(
                plan, spec.algorithm, train.rows, spec.num_epochs, spec.max_steps, world
            )
            if isinstance(steps, Finding):
                found.add([steps])
            else:
                found.estimates["total_steps"] = steps
        return plan

    def _sizes(
        self,
        spec: JobSpec,
        model: ModelReport,
        plan: BatchPlan | None,
        around: Surroundings,
        found: Findings,
    ) -> None:
        """Estimates of memory and disk are rough, so they warn and never refuse."""
        disk = _disk(spec, model, found.estimates.get("total_steps"))
        found.estimates["checkpoint_bytes"] = disk.checkpoint_bytes
        found.estimates["disk_bytes"] = disk.total_bytes
        if around.place is Place.HERE:
            short = check_free(around.checkpoint_dir, disk.total_bytes)
            found.add([short] if short else [], certain=False)
        gpus = [h for h in around.hosts if h.device == "cuda"]
        memory = _memory(spec, model, plan, on_cpu=bool(around.hosts) and not gpus)
        if memory is None:
            return
        found.estimates["memory_bytes"] = memory.total
        have = max((h.gpu_mib if gpus else h.memory_mib for h in gpus or around.hosts), default=0)
        if have:
            device = "the largest GPU" if gpus else "the largest host"
            tight = check_memory(memory, have << 20, device=device)
            found.add([tight] if tight else [], certain=False)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _disk(spec: JobSpec, model: ModelReport, steps: int | None) -> DiskEstimate:
    trained = lora_parameters(model, spec.lora_rank) if spec.lora_enabled else None
    saves = None if steps is None else steps // spec.save_steps + 2
    return estimate_checkpoints(
        model.parameters or 0,
        trained=trained,
        optim=spec.optim,
        save_total_limit=spec.save_total_limit,
        total_saves=saves,
    )


def _memory(
    spec: JobSpec, model: ModelReport, plan: BatchPlan | None, *, on_cpu: bool
) -> MemoryEstimate | None:
    return estimate_memory(
        model,
        RunShape(
            algorithm=spec.algorithm,
            batch=plan.per_device if plan else spec.batch_size,
            context_length=spec.context_length,
            lora_rank=spec.lora_rank if spec.lora_enabled else None,
            optim=spec.optim,
            gradient_checkpointing=spec.gradient_checkpointing,
            devices_sharing=spec.num_gpus * spec.num_nodes if spec.distribution == "fsdp" else 1,
            on_cpu=on_cpu,
        ),
    )


def _too_large(field: str, text: str) -> Finding:
    name = shown(text, 200)
    return Finding(
        "checked_later",
        field,
        f"{name} is large; its rows are checked on the host before training.",
        f"{name} 较大，将在训练前由主机逐行检查。",
        severity="warning",
    )


def _problem(finding: Finding, about: str) -> FieldProblem:
    about = shown(about, 200)
    name = about if about and about not in finding.message_en else ""
    en = f"{name}: {finding.message_en}" if name else finding.message_en
    zh = f"{name}：{finding.message_zh}" if name else finding.message_zh
    value = about or finding.value
    return FieldProblem(finding.field or "body", value, en, zh, finding.allowed, finding.code)
