"""Small Qwen2 models with random weights, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from services.gpu_agent.trainers.model_zoo.bytes_tokenizer import make_tokenizer

_SEED = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; `words` become tokens of their own."""

    hidden: int
    layers: int
    heads: int
    inner: int
    positions: int
    words: tuple[str, ...] = ()


TINY = Shape(hidden=64, layers=2, heads=4, inner=256, positions=2048)
"""140 thousand parameters: for trying things out and for tests."""

ARITHMETIC = Shape(
    hidden=128,
    layers=3,
    heads=4,
    inner=512,
    positions=256,
    words=("user\n", "assistant\n", "\\boxed{"),
)
"""0.77 million parameters: learns the addition of two-digit numbers in a minute on one core."""


def save_toy(shape: Shape, out: Path) -> int:
    """Make a model of this shape, save it with its tokenizer into `out`, and return its number of parameters."""
    tokenizer = make_tokenizer(shape.words)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 2,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return sum(p.numel() for p in model.parameters())
