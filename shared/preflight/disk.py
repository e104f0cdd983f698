"""How much disk the checkpoints of a run need, and whether a folder has that much."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from shared.disk.levels import in_words
from shared.preflight.finding import Finding, shown

# Free space asked for beyond the estimate: a partial write next to a full disk costs a whole run.
RESERVE = 1.2
ADAM_BYTES_PER_PARAMETER = 8  # two float32 moments
# Optimizers whose states are smaller than Adam's: bytes per trained parameter.
OPTIMIZER_BYTES = {
    "sgd": 0,
    "adafactor": 1,
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion": 4,
}
_SMALL_FILES = 16 << 20  # tokenizer, scheduler, RNG and trainer states


@dataclass(frozen=True, slots=True)
class DiskEstimate:
    """Bytes of one checkpoint, how many stand side by side at most, and both multiplied with a reserve of 20 %."""

    checkpoint_bytes: int
    kept: int
    total_bytes: int


def estimate_checkpoints(
    parameters: int,
    *,
    trained: int | None = None,
    bytes_per_parameter: int = 4,
    optim: str = "adamw_torch",
    save_total_limit: int = 3,
    total_saves: int | None = None,
) -> DiskEstimate:
    """The disk estimate of one run.

    A full checkpoint holds the weights (`bytes_per_parameter` each) and the optimizer's states of the trained
    parameters; a LoRA one (`trained` set) only the adapter in float32 and its states. Kept side by side: the
    newest `save_total_limit`, checkpoint-0, the best, the last, and the one being written. `total_saves` (checkpoint-0
    counted) bounds that for a short run.
    """
    learned = parameters if trained is None else trained
    weights = parameters * bytes_per_parameter if trained is None else trained * 4
    states = learned * OPTIMIZER_BYTES.get(optim.lower(), ADAM_BYTES_PER_PARAMETER)
    one = weights + states + _SMALL_FILES
    kept = max(1, save_total_limit) + 4
    if total_saves is not None:
        kept = max(1, min(kept, total_saves))
    return DiskEstimate(one, kept, int(one * kept * RESERVE))


def check_free(
    path: Path | str, need: int, *, field: str | None = "save_total_limit"
) -> Finding | None:
    """None when the disk that holds `path` has `need` bytes free, else `disk_full` with path, need and have.

    `path` need not exist yet: its nearest existing parent is asked.
    """
    place = Path(path)
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        have = shutil.disk_usage(place).free
    except (OSError, ValueError) as error:
        return Finding(
            "disk_unreadable",
            field,
            f"The free space of {shown(str(path), 200)} cannot be read: {shown(str(error))}.",
            f"无法读取 {shown(str(path), 200)} 的剩余空间：{shown(str(error))}。",
            value=shown(str(path), 200),
        )
    if have >= need:
        return None
    return Finding(
        "disk_full",
        field,
        f"{shown(str(path), 200)}: the checkpoints need about {in_words(need)}, {in_words(have)} are free. "
        "Free some space, lower save_total_limit, raise save_steps, or use LoRA.",
        f"{shown(str(path), 200)}：检查点约需 {in_words(need)}，剩余空间 {in_words(have)}。"
        "请清理磁盘、调小 save_total_limit、调大 save_steps，或使用 LoRA。",
        value=in_words(have),
        allowed=f">= {in_words(need)}",
    )
