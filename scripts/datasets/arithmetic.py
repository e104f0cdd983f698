"""The three arithmetic files: two-digit addition, with the evaluation pairs held out of both training files."""

import random
from collections.abc import Iterator

LOWEST, HIGHEST = 10, 99
EVAL_ROWS, SFT_ROWS = 400, 4_000
_EVAL_DOUBLES = 10  # pairs such as 37+37, which have no twin

Pair = tuple[int, int]


def split(seed: int) -> tuple[list[Pair], list[Pair]]:
    """All 8,100 ordered pairs as (training, evaluation), both shuffled.

    The evaluation set is closed under swapping: where 34+57 is held out, 57+34 is too, so that no held-out sum
    can be answered by having seen its twin.
    """
    rng = random.Random(seed)
    span = range(LOWEST, HIGHEST + 1)
    doubles = rng.sample([(n, n) for n in span], _EVAL_DOUBLES)
    mixed = rng.sample(
        [(a, b) for a in span for b in span if a < b], (EVAL_ROWS - _EVAL_DOUBLES) // 2
    )
    held = [*doubles, *mixed, *((b, a) for a, b in mixed)]
    out = set(held)
    train = [(a, b) for a in span for b in span if (a, b) not in out]
    rng.shuffle(held)
    rng.shuffle(train)
    return train, held


def rows(seed: int) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """(file name, rows) of the three files."""
    train, held = split(seed)
    chosen = random.Random(seed + 1).sample(train, SFT_ROWS)
    yield (
        "arithmetic_sft.jsonl",
        [{"prompt": _ask(pair), "response": _boxed(pair)} for pair in chosen],
    )
    yield (
        "arithmetic_grpo.jsonl",
        [{"prompt": _ask(pair), "solution": str(sum(pair))} for pair in train],
    )
    yield (
        "arithmetic_eval.jsonl",
        [
            {"prompt": _ask(pair), "response": _boxed(pair), "solution": str(sum(pair))}
            for pair in held
        ],
    )


def _ask(pair: Pair) -> str:
    return f"{pair[0]}+{pair[1]}="


def _boxed(pair: Pair) -> str:
    return f"\\boxed{{{sum(pair)}}}"
