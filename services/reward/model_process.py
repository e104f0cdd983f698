"""A sequence-classification model in a process of its own: lines of JSON in, lines of JSON out. The only place here with torch.

`python -P -m services.reward.model_process FOLDER DEVICE` says `{"ready": true}` once the model is loaded.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

ADAPTER_CONFIG: Final = "adapter_config.json"
MICRO_BATCH: Final = 16
MICRO_TOKENS: Final = 8192
Pair = tuple[str, str]
"""Prompt and completion."""


class Scorer:
    """Scores pairs with one model. Scores are raw logits: of the only label, or of the last one."""

    def __init__(self, folder: str, device: str = "cpu") -> None:
        """Load from a local folder; safetensors only, no code of the model's own is run. `device`: cpu, cuda or cuda:N."""
        import torch
        from transformers import AutoTokenizer

        self._torch = torch
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._device = device
        kind = torch.float32 if device == "cpu" else torch.bfloat16
        self._model = _load(folder, {"dtype": kind, "use_safetensors": True, **options})
        self._model.to(self._device)
        self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model.eval()

    def scores(self, pairs: Sequence[Pair], max_length: int) -> list[float | str]:
        """Return a score for each pair, or why there is none."""
        encoded = [self._encode(pair, max_length) for pair in pairs]
        found: list[float | str] = [e if isinstance(e, str) else "" for e in encoded]
        fit = {n: e for n, e in enumerate(encoded) if not isinstance(e, str)}
        order = sorted(fit, key=lambda n: len(fit[n]))
        for batch in _micro_batches(order, [len(e) for e in encoded]):
            for n, score in zip(batch, self._forward([fit[n] for n in batch]), strict=True):
                found[n] = score if math.isfinite(score) else "the model's score is not finite"
        return found

    def _encode(self, pair: Pair, max_length: int) -> list[int] | str:
        """Return token ids, the prompt cut from its left where it is too long; a completion is never cut."""
        prompt, completion = pair
        tokens = self._tokens(prompt, completion)
        if len(tokens) <= max_length:
            return tokens
        own = self._tokenizer(completion, add_special_tokens=False)["input_ids"]
        if len(own) >= max_length:
            return f"the completion has {len(own)} tokens, and the model takes {max_length}"
        return tokens[-max_length:]

    def _tokens(self, prompt: str, completion: str) -> list[int]:
        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            turns = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": completion},
            ]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            # the template writes the first token itself; adding it again would make two
            tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            # as trainers write it: one text, ended by the token that ends answers
            end = tokenizer.eos_token or ""
            text = prompt + completion + ("" if completion.endswith(end) else end)
            tokens = list(tokenizer(text)["input_ids"])
        first = tokenizer.bos_token_id
        while first is not None and tokens[:2] == [first, first]:
            tokens = tokens[1:]
        return tokens or [tokenizer.pad_token_id]

    def _forward(self, batch: Sequence[list[int]]) -> list[float]:
        torch = self._torch
        longest = max(len(b) for b in batch)
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([b + [pad] * (longest - len(b)) for b in batch], device=self._device)
        mask = torch.tensor(
            [[1] * len(b) + [0] * (longest - len(b)) for b in batch], device=self._device
        )
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask).logits.float()
        return [float(row[-1]) for row in logits]


def _load(folder: str, options: dict[str, Any]) -> Any:
    """Load a full model, or a LoRA adapter on the base that it names, with as many labels as it was trained for."""
    from transformers import AutoModelForSequenceClassification

    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        return AutoModelForSequenceClassification.from_pretrained(folder, **options)
    from peft import PeftModel
    from safetensors import safe_open

    config = json.loads((Path(folder) / ADAPTER_CONFIG).read_bytes())
    base, revision = config["base_model_name_or_path"], config.get("revision") or "main"
    with safe_open(f"{folder}/adapter_model.safetensors", "pt") as weights:
        heads = [k for k in weights.keys() if k.endswith(("score.weight", "classifier.weight"))]  # noqa: SIM118
        labels = weights.get_slice(heads[0]).get_shape()[0] if heads else 1
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, revision=revision, **options
    )
    return PeftModel.from_pretrained(model, folder)


def _micro_batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Split items, shortest first, into batches of at most 16 items and 8,192 tokens with padding."""
    batch: list[int] = []
    for n in order:
        full = len(batch) >= MICRO_BATCH or (len(batch) + 1) * lengths[n] > MICRO_TOKENS
        if batch and full:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def main() -> int:
    """Serve until standard input closes."""
    # libraries may print: only answers go to the pipe
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    scorer = Scorer(sys.argv[1], sys.argv[2])
    print(json.dumps({"ready": True}), file=pipe, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        pairs = [(p, c) for p, c in asked["pairs"]]
        try:
            answer: dict[str, Any] = {"scores": scorer.scores(pairs, asked["max_length"])}
        except (RuntimeError, ValueError, IndexError) as error:
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(answer), file=pipe, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
