"""The baseline of a start: a fresh process that imports TRL, loads a model and does one training step."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Train one step."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = load_dataset(
            "json",
            data_files=str(ROOT / "datasets" / "sales_sft.jsonl"),
            split="train",
            cache_dir=folder,
        )
        SFTTrainer(
            model=sys.argv[1],
            args=SFTConfig(
                output_dir=folder,
                max_steps=1,
                per_device_train_batch_size=2,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
                report_to="none",
                max_length=512,
                disable_tqdm=True,
            ),
            train_dataset=rows,
        ).train()


if __name__ == "__main__":
    main()
