"""The three arithmetic files: two-digit addition, with the evaluation pairs held out of both training files."""

import random
from collections.abc import Iterator

LOWEST, HIGHEST = 10, 99
EVAL_ROWS, SFT_ROWS = 400, 4_000
SHORT_ROWS = 2_600
"""Of the SFT rows, those with a sum below 100.

Drawn evenly they are 1,600, and a model learns them last: their first digit takes a carry to know, that of the others is
always 1. Started from there, reinforcement finds no right answer to reward (about 1 in 16) and stalls.
"""
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
    chosen = _examples(train, random.Random(seed + 1))
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


def _examples(train: list[Pair], rng: random.Random) -> list[Pair]:
    """SFT_ROWS training pairs, SHORT_ROWS of them with a sum below 100, shuffled."""
    short = [pair for pair in train if sum(pair) < 100]
    long = [pair for pair in train if sum(pair) >= 100]
    chosen = [*rng.sample(short, SHORT_ROWS), *rng.sample(long, SFT_ROWS - SHORT_ROWS)]
    rng.shuffle(chosen)
    return chosen


def _ask(pair: Pair) -> str:
    return f"{pair[0]}+{pair[1]}="


def _boxed(pair: Pair) -> str:
    return f"\\boxed{{{sum(pair)}}}"
