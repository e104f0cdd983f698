"""The sales and general files, put together from the hand-written texts in `text/`.

Every dialogue, preference pair, prompt and problem was written by hand; code only checks, shuffles and shapes them.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from scripts.datasets.expression import as_text, evaluate

TEXTS = Path(__file__).parent / "text"
Row = dict[str, object]

# How a problem asks for its answer; taken in turn, so that no wording stands for the format.
_ASK_ZH = (
    "请把最终答案写在 \\boxed{} 中。",
    "先列式再计算，结果放进 \\boxed{}。",
    "请一步一步算，最后用 \\boxed{} 给出数字。",
    "写出过程，并以 \\boxed{答案} 结尾。",
    "只需在 \\boxed{} 里填数字，不带单位。",
    "算完后把得数写成 \\boxed{数字}。",
    "请简要说明思路，答案用 \\boxed{} 括起来。",
)
_ASK_EN = (
    "Put the final answer in \\boxed{}.",
    "Show the steps and end with \\boxed{number}.",
    "Give the number alone inside \\boxed{}.",
)


def rows(seed: int) -> Iterator[tuple[str, list[Row]]]:
    """(file name, rows) of the four files."""
    yield "sales_sft.jsonl", _dialogues(random.Random(seed + 2))
    yield "sales_dpo.jsonl", _preferences(random.Random(seed + 3))
    yield "ppo_general.json", _prompts(random.Random(seed + 4))
    yield "sales_grpo.jsonl", _problems(random.Random(seed + 5))


def _dialogues(rng: random.Random) -> list[Row]:
    made: list[Row] = []
    for path in sorted((TEXTS / "sales_sft").glob("*.txt")):
        systems: list[str] = []
        for block in path.read_text(encoding="utf-8").split("\n\n"):
            lines = [line for line in block.splitlines() if line.strip()]
            systems += [line[2:] for line in lines if line.startswith("% ")]
            turns = [_turn(line, path) for line in lines if not line.startswith("% ")]
            if not turns:
                continue
            _check_turns(turns, path)
            # Two of three rows say who is talking, so that a model learns to do with and without it.
            persona = (
                [{"role": "system", "content": systems[len(made) % len(systems)]}]
                if len(made) % 3
                else []
            )
            made.append({"messages": persona + turns})
    rng.shuffle(made)
    return made


def _turn(line: str, path: Path) -> dict[str, str]:
    role = {"U: ": "user", "A: ": "assistant"}.get(line[:3])
    if role is None:
        raise ValueError(f"{path.name}: a line begins with neither U: nor A: — {line[:40]}")
    return {"role": role, "content": line[3:].strip()}


def _check_turns(turns: list[dict[str, str]], path: Path) -> None:
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"{path.name}: turns do not alternate at {turns[0]['content'][:40]}")


def _preferences(rng: random.Random) -> list[Row]:
    made: list[Row] = []
    for path in sorted((TEXTS / "sales_dpo").glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            prompt, chosen, rejected = line.split("||")
            made.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    rng.shuffle(made)
    return made


def _prompts(rng: random.Random) -> list[Row]:
    lines = (TEXTS / "ppo_general.txt").read_text(encoding="utf-8").splitlines()
    rng.shuffle(lines)
    return [{"prompt": line} for line in lines]


def _problems(rng: random.Random) -> list[Row]:
    lines = (TEXTS / "sales_grpo.txt").read_text(encoding="utf-8").splitlines()
    rng.shuffle(lines)
    made: list[Row] = []
    for number, line in enumerate(lines):
        question, formula = line.split("|")
        asks = _ASK_EN if question.isascii() else _ASK_ZH
        space = " " if question.isascii() else ""
        made.append(
            {
                "prompt": f"{question}{space}{asks[number % len(asks)]}",
                "solution": as_text(evaluate(formula)),
            }
        )
    return made
