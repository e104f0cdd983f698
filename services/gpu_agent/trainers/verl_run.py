"""Runs verl below us for a job with `engine: "verl"`: its command, its lines as metrics, its saves as our checkpoints.

verl has no stop that saves: a stop ends it at once, and the job goes on from its last save (`save_steps`).
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import subprocess
import threading
import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Final

from services.gpu_agent import checkpoint_store, verl_home
from services.gpu_agent.core.exits import last_error_line
from services.gpu_agent.core.verl_log import VerlStep, parse_line
from services.gpu_agent.trainers import loading, verl_judge, verl_rows
from services.gpu_agent.trainers.context import TrainContext, write_line
from services.gpu_agent.trainers.failures import TrainingFailure
from services.gpu_agent.trainers.judging import NONFINITE_STEPS, Best, StepTimes, reached
from services.gpu_agent.trainers.loading import ADAPTER_CONFIG
from services.gpu_agent.trainers.reward_spec import reward_plan
from services.gpu_agent.trainers.rewarding import Scorer
from services.gpu_agent.trainers.saving import CheckpointWriter
from services.gpu_agent.trainers.settings import RolloutSettings, parse
from services.gpu_agent.trainers.verl_command import MODULE, VerlFiles, VerlPlan, plan, text
from services.gpu_agent.trainers.verl_reward import NO_VERDICT
from shared.jobs.reasons import Reason
from shared.runs import RunSpec

REWARD_FILE: Final = Path(__file__).with_name("verl_reward.py")
_SAVED: Final = "latest_checkpointed_iteration.txt"
_LOOK_SECONDS: Final = 0.5
_END_SECONDS: Final = 20.0
_TAIL_LINES: Final = 300


def run(context: TrainContext) -> None:
    """Train as the spec says; returns when verl is done or was stopped. Raises what ends it badly."""
    started = time.monotonic()
    spec = context.spec
    chosen = parse(spec.config, RolloutSettings)
    if (Path(spec.model_path) / ADAPTER_CONFIG).is_file():
        raise TrainingFailure(
            Reason.CONFIG_INVALID,
            f"engine verl starts from whole weights, and model_path {spec.model_path} is a LoRA adapter. Set engine to trl, which merges or continues it.",
            f"verl 引擎需要完整权重，而 model_path {spec.model_path} 是 LoRA 适配器。请将 engine 设为 trl（可合并或继续训练）。",
        )
    folder = spec.attempt_dir / "verl"
    context.phase("tokenizing")
    key = str(spec.config.get("reward_fn_answer_key") or "solution")
    train, held_out = folder / "train.parquet", folder / "eval.parquet"
    rows = verl_rows.write(spec.train_data_path, "train_data_path", key, train)
    if spec.eval_data_path is not None:
        verl_rows.write(spec.eval_data_path, "eval_data_path", key, held_out)
    for name in checkpoint_store.sweep_leftovers(spec.checkpoint_dir):
        context.info(f"Removed what a cut-short save left: {name}")
    saves = spec.checkpoint_dir / f"{checkpoint_store.LEFTOVER_PREFIX}verl"
    saves.mkdir(parents=True)
    scorer = Scorer(context, reward_plan(spec.config, loading.reward_models(spec.model_paths)))
    limit = chosen.time_limit_minutes
    deadline = math.inf if limit is None else started + limit * 60
    with closing(scorer), verl_judge.serving(scorer) as judge:
        files = VerlFiles(
            train=train,
            rows=rows,
            held_out=held_out if spec.eval_data_path is not None else None,
            checkpoints=saves,
            reward=REWARD_FILE,
            judge=judge,
            resume_from=_resume(context),
        )
        wanted = plan(spec, files)
        for note in wanted.notes:
            context.warning(note[0])
        context.give_way()
        _Verl(context, chosen, wanted, saves, folder).follow(deadline)
    shutil.rmtree(saves, ignore_errors=True)


def _resume(context: TrainContext) -> Path | None:
    start = context.spec.resume_from
    if start is None:
        return None
    found = checkpoint_store.read(start)
    problem = found if isinstance(found, str) else checkpoint_store.verify(start)
    if problem is not None or isinstance(found, str):
        raise TrainingFailure(
            Reason.CHECKPOINT_CORRUPT,
            f"{start.name} cannot be resumed from: {problem}.",
            f"无法从 {start.name} 恢复：{problem}。",
        )
    context.last_checkpoint, context.step = start, found.step
    shards = start / _step_name(found.step)
    return shards if shards.is_dir() else None  # the model itself: verl begins with it


class _Verl:
    """One process of verl and what it has said so far."""

    def __init__(
        self,
        context: TrainContext,
        chosen: RolloutSettings,
        wanted: VerlPlan,
        saves: Path,
        folder: Path,
    ) -> None:
        self.context = context
        self.chosen = chosen
        self.wanted = wanted
        self.saves = saves
        kind = "lora" if chosen.lora_enabled else "full"
        self.writer = CheckpointWriter(context, kind, chosen.save_total_limit)  # type: ignore[arg-type]
        self.best = Best(chosen.best_metric)
        self.times = StepTimes()
        self.step_at = time.monotonic()
        self.saved = context.step
        self.lost_in_a_row = 0
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # without -P, which Python 3.10 does not know; PYTHONSAFEPATH is in the environment of every run
        command = [verl_home.python(), "-m", MODULE, *wanted.overrides]
        command += [f"hydra.run.dir={text(str(folder / 'hydra'))}", "hydra.output_subdir=null"]
        context.info(" ".join(command[2:]))
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | _visible(context.spec),
            text=True,
            errors="replace",
        )
        self.reader = threading.Thread(target=self._read, name="verl-lines", daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def follow(self, deadline: float) -> None:
        """Stay with it to its end. Raises TrainingFailure."""
        context = self.context
        context.progress(context.step, self.wanted.steps, None, None)
        context.phase("training")
        try:
            while (line := self._next()) is not None:
                if line:
                    self._hear(line)
                self._take_saves()
                if context.should_stop() or context.stop_cause is not None:
                    return
                if time.monotonic() >= deadline:
                    context.stop_cause = "time_limit"
                    return
            self._judge(self.process.wait(_END_SECONDS))
        finally:
            self._end()
            self._take_saves()

    def _next(self) -> str | None:
        """Return the next line, "" where none came for a while, None at the end."""
        try:
            return self.lines.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            return ""

    def _hear(self, line: str) -> None:
        self.tail.append(line)
        write_line("INFO", self.context.clean(line))
        found = parse_line(line)
        if found is not None and found.metrics:
            self._report(found)

    def _report(self, found: VerlStep) -> None:
        context, now = self.context, time.monotonic()
        held_out = {n: v for n, v in found.metrics.items() if n.startswith("eval_")}
        trained = {n: v for n, v in found.metrics.items() if n not in held_out}
        for metrics in (trained, held_out):
            if metrics:
                context.metric(found.step, found.epoch, metrics)
        if trained:
            self.times.add(now - self.step_at)
            self.step_at = now
            left = self.wanted.steps - found.step
            context.progress(
                found.step, self.wanted.steps, found.epoch, self.times.eta_seconds(left)
            )
            self._look_for_loss(found.step, trained)
        value = held_out.get(self.best.metric)
        if value is not None:
            self.best = self.best.after(found.step, value)
        name, target = self.chosen.stop_metric, self.chosen.stop_value
        if (
            name in found.metrics
            and target is not None
            and reached(str(name), found.metrics[str(name)], target)
        ):
            context.stop_cause = "stop_metric"

    def _look_for_loss(self, step: int, metrics: dict[str, float]) -> None:
        watched = [metrics[n] for n in ("policy_loss", "grad_norm") if n in metrics]
        lost = any(not math.isfinite(value) for value in watched)
        self.lost_in_a_row = self.lost_in_a_row + 1 if lost else 0
        if self.lost_in_a_row >= NONFINITE_STEPS:
            raise TrainingFailure(
                Reason.NAN_LOSS,
                f"The loss or the gradient was no longer finite at step {step}.",
                f"在第 {step} 步，损失或梯度已不再是有限值。",
            )

    def _take_saves(self) -> None:
        """Show what verl has saved since the last look."""
        try:
            newest = int((self.saves / _SAVED).read_text())  # written after all else of a save
        except (OSError, ValueError):
            return
        there = (int(p.name.rpartition("_")[2]) for p in self.saves.glob(_step_name("*")))
        for step in sorted(step for step in there if self.saved < step <= newest):
            self.saved = step
            self._take(step, self.saves / _step_name(step))

    def _take(self, step: int, shards: Path) -> None:
        """Make one save a checkpoint: whole weights on top, verl's own shards below for a resume."""
        temporary = checkpoint_store.begin(self.context.spec.checkpoint_dir, step)
        moved = shards.rename(temporary / shards.name)
        for source in ("huggingface", "lora_adapter"):
            inner = moved / "actor" / source
            for path in inner.iterdir() if inner.is_dir() else ():
                if path.is_file() and not (temporary / path.name).exists():
                    os.link(path, temporary / path.name)
        self.writer.show(
            temporary,
            step,
            best_step=self.best.step,
            last=step >= self.wanted.steps,
            kept={"best": self.best.as_json(), "max_steps": self.wanted.steps},
        )

    def _judge(self, code: int) -> None:
        if code == 0:
            return
        text = "\n".join(self.tail)
        if NO_VERDICT in text:
            self.context.stop_cause = "reward_unavailable"
            return
        raise VerlFailed(last_error_line(text) or f"verl ended with code {code}")

    def _end(self) -> None:
        """End it where it still runs; what Ray leaves behind the shim clears away."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.reader.join(
            _LOOK_SECONDS
        )  # a process of Ray may hold the pipe: then the thread ends with this one
        if self.process.stdout is not None and not self.reader.is_alive():
            self.process.stdout.close()


def _visible(spec: RunSpec) -> dict[str, str]:
    """Name GPUs by number: vLLM (up to 0.20 at least) takes each for an integer and fails on a UUID."""
    if spec.device != "cuda":
        return {}
    numbers = ",".join(str(gpu.index) for gpu in spec.gpus)
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": numbers}


class VerlFailed(RuntimeError):
    """verl ended by itself; the message is the last error that it printed."""


def _step_name(step: int | str) -> str:
    return f"global_step_{step}"
