"""Checkpoints that are complete or absent, for any Hugging Face trainer: written aside, sealed, shown by one rename."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers.trainer_callback import ExportableState

from services.gpu_agent import checkpoint_store
from services.gpu_agent.checkpoint_store import Checkpoint, Kind
from services.gpu_agent.trainers import cpu_fsdp, fsdp_files, ranks
from services.gpu_agent.trainers.context import TrainContext, split_nonfinite
from services.gpu_agent.trainers.failures import TrainingFailure, classify, no_room
from shared.disk.levels import Shortage
from shared.disk.volumes import volume_of
from shared.jobs.reasons import Reason
from shared.preflight.disk import RESERVE

_STATE_FILE = "trainer_state.json"
_PICKLED_ARGUMENTS = "training_args.bin"


class CheckpointWriter:
    """Saves, announces and thins out the checkpoints of one attempt."""

    def __init__(self, context: TrainContext, kind: Kind, save_total_limit: int | None) -> None:
        self._context = context
        self._kind = kind
        self._limit = save_total_limit

    def save(
        self, trainer: Any, *, best_step: int | None, last: bool, kept: dict[str, Any]
    ) -> None:
        """Save the trainer's whole state at its step. `kept` comes back from the manifest on resume.

        Several ranks write their parts into one folder; the first one shows it once all have. Raises TrainingFailure
        where the weights are no longer finite, OSError where the disk refuses; the folder is then absent and older
        checkpoints are as they were.
        """
        context, step = self._context, int(trainer.state.global_step)
        if not weights_finite(trainer.model):
            raise not_finite(step)
        context.phase("saving")
        temporary = ranks.first_does(
            lambda: checkpoint_store.begin(context.spec.checkpoint_dir, step)
        )
        try:
            _write_files(trainer, temporary)
            ranks.wait_for_all()
            if not ranks.is_first():
                context.last_checkpoint = (
                    context.spec.checkpoint_dir / checkpoint_store.folder_name(step)
                )
                return
            saved = checkpoint_store.publish(
                temporary,
                step,
                self._kind,
                time.time(),
                split_nonfinite(context.latest_at(step))[0],
                kept,
            )
        except BaseException as error:
            written = folder_bytes(temporary)
            if not ranks.is_first():
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            if classify(error).reason is not Reason.DISK_FULL:
                raise
            raise self._no_room(step, written) from error
        context.checkpoint(saved, best=best_step == step, last=last)
        self._thin_out(step, best_step)

    def show(
        self,
        temporary: Path,
        step: int,
        *,
        best_step: int | None,
        last: bool,
        kept: dict[str, Any],
    ) -> None:
        """Seal, announce and thin out, for files that something else has written. Raises OSError."""
        saved = checkpoint_store.publish(
            temporary,
            step,
            self._kind,
            time.time(),
            split_nonfinite(self._context.latest_at(step))[0],
            kept,
        )
        self._context.checkpoint(saved, best=best_step == step, last=last)
        self._thin_out(step, best_step)

    def _no_room(self, step: int, written: int) -> TrainingFailure:
        """Return the failure for a checkpoint that did not fit: as large as the last one, or as what was written."""
        folder = self._context.spec.checkpoint_dir
        known = [c.size_bytes for c in checkpoint_store.list_complete(folder)]
        need = int(max([written * 2, *known]) * RESERVE)
        volume = volume_of(folder)
        short = Shortage(str(folder), need, volume.free if volume else 0)
        return no_room(short, f"the checkpoint of step {step} in", f"第 {step} 步的检查点目录")

    def announce_again(self, step: int) -> None:
        """Announce a checkpoint once more, now known to be the best."""
        found = checkpoint_store.read(
            self._context.spec.checkpoint_dir / checkpoint_store.folder_name(step)
        )
        if isinstance(found, Checkpoint):
            self._context.checkpoint(found, best=True, last=False)

    def _thin_out(self, step: int, best_step: int | None) -> None:
        """Apply `save_total_limit`; folders beyond this step belong to an earlier attempt and are left alone."""
        there = [
            c
            for c in checkpoint_store.list_complete(self._context.spec.checkpoint_dir)
            if c.step <= step
        ]
        keep = checkpoint_store.retained((c.step for c in there), self._limit, best_step)
        for checkpoint in reversed(there):
            if checkpoint.step not in keep:
                # said first: a kill in between leaves a folder that nobody lists, never a row without a folder
                self._context.checkpoint_deleted(checkpoint.step)
                checkpoint_store.delete(checkpoint)


class SealedCheckpoints:
    """Mixed into a Hugging Face trainer, before it: replaces how that one saves, and what it tells the world."""

    def attach(self, watcher: Any) -> None:
        """Let `watcher.save(trainer)` decide what a save is."""
        self._watcher = watcher

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._watcher.save(self)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card: it would hold paths of this host and is no part of a checkpoint."""

    def _send_telemetry(self) -> None:
        """Tell nobody."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if state_dict is not None:
            state_dict = fsdp_files.untied(self.model, state_dict)  # type: ignore[attr-defined]
        super()._save(output_dir, state_dict)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if fsdp_files.holds_whole_weights(self):
            fsdp_files.load_weights(self, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of weights that a checkpoint lacks, but not of the second name of a tied weight: one was written, both are read."""
        model: Any = self.model  # type: ignore[attr-defined]
        lost = without_tied(model, load_result.missing_keys)
        found = SimpleNamespace(missing_keys=lost, unexpected_keys=load_result.unexpected_keys)
        super()._issue_warnings_after_load(found)  # type: ignore[misc]

    def create_accelerator_and_postprocess(self) -> None:
        """Split the model over CPU ranks too, where that is asked for."""
        cpu_fsdp.allow(self.args)  # type: ignore[attr-defined]
        super().create_accelerator_and_postprocess()  # type: ignore[misc]


def without_tied(model: torch.nn.Module, names: Sequence[str]) -> list[str]:
    """Return those of `names` whose weight has no name beyond them; they may be relative to a part of `model`."""
    missing = tuple(f".{name}" for name in names)
    there: set[int] = set()
    lost: dict[str, int] = {}
    for full, weight in model.named_parameters(remove_duplicate=False):
        known = f".{full}"
        if known.endswith(missing):
            lost |= {name[1:]: id(weight) for name in missing if known.endswith(name)}
        else:
            there.add(id(weight))
    return [name for name in names if lost.get(name, -1) not in there]


def folder_bytes(folder: Path) -> int:
    """Return the bytes in all files below `folder`."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def _write_files(trainer: Any, folder: Path) -> None:
    """Write what `Trainer._save_checkpoint` of transformers 5.23 writes, in the same order, without rotation."""
    trainer.store_flos()
    trainer.save_model(str(folder), _internal_call=True)
    (folder / _PICKLED_ARGUMENTS).unlink(
        missing_ok=True
    )  # a pickle that nothing reads; it names paths of this host
    (folder / "README.md").unlink(missing_ok=True)
    fsdp_files.write_state(trainer, folder)
    trainer._save_scaler(str(folder))
    trainer._save_rng_state(str(folder))
    if trainer.args.should_save:
        for callback in [*trainer.callback_handler.callbacks, trainer.control]:
            if isinstance(callback, ExportableState):
                trainer.state.stateful_callbacks[type(callback).__name__] = callback.state()
        trainer.state.save_to_json(str(folder / _STATE_FILE))


def weights_finite(model: Any) -> bool:
    """Tell whether every trained weight is a finite number; one pass over them, one wait for the device.

    Each rank looks at the part that it holds; the answer is for all of them.
    """
    trained = [_own_part(p.detach()) for p in model.parameters() if p.requires_grad]
    # a sum is not finite if any part is not; float64 so that large finite weights do not overflow
    lost = bool(trained) and not bool(
        torch.isfinite(torch.stack([p.sum(dtype=torch.float64) for p in trained])).all()
    )
    return not ranks.agree(lost)[0]


def _own_part(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def not_finite(step: int) -> TrainingFailure:
    """Return the failure for weights, loss or gradient that are lost."""
    return TrainingFailure(
        Reason.NAN_LOSS,
        f"The loss, the gradient or the weights were no longer finite at step {step}.",
        f"在第 {step} 步，损失、梯度或权重已不再是有限值。",
    )


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Keep the CPU generator as it is: evaluating must not change what is trained, nor a resumed run differ."""
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


Generators = tuple[torch.Tensor, list[torch.Tensor]]
"""State of torch's generators: the CPU's, and that of each GPU in use."""


def generators() -> Generators:
    """Return the state of the generators that sampling draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return torch.random.get_rng_state(), cuda


def restore_generators(state: Generators) -> None:
    """Put the generators back to where they were."""
    torch.random.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
