"""The parameter pages of the documentation, generated from the specs: `python -m shared.specs.document [ROOT]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.jobs.reasons import Lang
from shared.specs.base import Algorithm
from shared.specs.hints import GROUPS
from shared.specs.job_spec import EVERY_ALGORITHM
from shared.specs.metrics import METRICS
from shared.specs.parameters import Parameter, described, number_text, parameters
from shared.specs.rewards import RewardComponent

PAGES: Final[dict[Lang, str]] = {
    "en": "docs/reference/parameters.md",
    "zh": "docs/zh-CN/parameters.md",
}

_HEAD: Final[dict[Lang, str]] = {
    "en": """# Parameters of a job

Generated from `shared/specs` by `python -m shared.specs.document`; do not edit.

The body of `POST /api/v1/jobs/` is one flat JSON object of these parameters. Types are strict: `"5"` is not `5`,
`true` is not `1`, and NaN is refused. An unknown parameter is refused with the nearest known name, and so is
one that belongs to another algorithm.

Where the product fixes no default it is the installed library's: transformers 5.23 and TRL 1.16 (`lr_scheduler_type`,
`optim`, `adam_beta1`, `adam_beta2`, `weight_decay`, `max_grad_norm`, `gradient_checkpointing`, `packing`, `temperature`,
`top_p`, `max_completion_length`), peft 0.21 (`lora_dropout`). TRL no longer has a PPO trainer: `vf_coef`, `gae_lambda`,
`ppo_epochs` and `ppo_minibatches` are those of its last `PPOConfig`.

`model_path` takes a Hugging Face id (`org/name`, `org/name@revision`), a folder (`/models/mine`, `./mine`, `~/mine`), or a
checkpoint of another job (`job:<uuid>`, `job:<uuid>@100`, `@best`, `@last`; without a selector the last). In a
pipeline also `stage:<name>`. `ref_model_path` and `reward_model_path` take the same forms. A text that could be
both an id and a folder, such as `models/mine`, is the folder if the host has one.
""",
    "zh": """# 任务参数

由 `python -m shared.specs.document` 从 `shared/specs` 生成，请勿手工修改。

`POST /api/v1/jobs/` 的请求体是由下列参数组成的一个扁平 JSON 对象。类型严格：`"5"` 不是 `5`，`true` 不是 `1`，NaN 会被
拒绝。未知参数会被拒绝并提示最接近的名称；属于其他算法的参数同样会被拒绝。

产品未规定的默认值取自所装的库：transformers 5.23 与 TRL 1.16（`lr_scheduler_type`、`optim`、`adam_beta1`、
`adam_beta2`、`weight_decay`、`max_grad_norm`、`gradient_checkpointing`、`packing`、`temperature`、`top_p`、
`max_completion_length`），peft 0.21（`lora_dropout`）。TRL 已移除 PPO 训练器，`vf_coef`、`gae_lambda`、
`ppo_epochs`、`ppo_minibatches` 取其最后一版 `PPOConfig` 的值。

`model_path` 可以是 Hugging Face id（`org/name`、`org/name@revision`）、目录（`/models/mine`、`./mine`、`~/mine`），或另一
任务的检查点（`job:<uuid>`、`job:<uuid>@100`、`@best`、`@last`；不写时为最后一个）。在流水线中还可以是
`stage:<name>`。`ref_model_path` 和 `reward_model_path` 的写法相同。`models/mine` 这类既像 id 又像目录的写法，主机上有
该目录时按目录处理。
""",
}
_COLUMNS: Final[dict[Lang, tuple[str, ...]]] = {
    "en": ("Parameter", "Algorithms", "Type", "Default", "Range", "Unit", "What it does"),
    "zh": ("参数", "算法", "类型", "默认值", "范围", "单位", "说明"),
}
_WORDS: Final[dict[Lang, dict[str, str]]] = {
    "en": {
        "all": "all",
        "required": "required",
        "secret": "write-only",
        "components": "Entries of `rewards`",
        "metrics": "Headline metrics",
    },
    "zh": {
        "all": "全部",
        "required": "必填",
        "secret": "只写",
        "components": "`rewards` 的条目",
        "metrics": "主要指标",
        "integer": "整数",
        "number": "数",
        "string": "文本",
        "boolean": "布尔",
        "choice": "选项",
        "list": "列表",
        "object": "对象",
        "characters": "字符",
        "entries": "项",
    },
}


def parameters_page(lang: Lang) -> str:
    """Return the page of all parameters in one language, as Markdown."""
    rows = _rows()
    lines = [_HEAD[lang]]
    for group, titles in GROUPS.items():
        mine = [(p, algorithms) for p, algorithms in rows if p.group == group]
        lines += [f"## {titles[1 if lang == 'zh' else 0]}", "", *_table(mine, lang), ""]
    components: list[tuple[Parameter, tuple[Algorithm, ...]]] = [
        (p, ()) for p in described(RewardComponent).values()
    ]
    lines += [f"## {_WORDS[lang]['components']}", "", *_table(components, lang), ""]
    lines += [f"## {_WORDS[lang]['metrics']}", "", *_metrics(lang)]
    return "\n".join(lines) + "\n"


def _rows() -> list[tuple[Parameter, tuple[Algorithm, ...]]]:
    """Return each distinct parameter with the algorithms that have it; one name may mean two things."""
    found: dict[str, tuple[Parameter, list[Algorithm]]] = {}
    for algorithm in EVERY_ALGORITHM:
        for parameter in parameters(algorithm):
            if parameter.name == "algorithm":
                continue
            found.setdefault(repr(parameter), (parameter, []))[1].append(algorithm)
    return [(parameter, tuple(algorithms)) for parameter, algorithms in found.values()]


def _table(rows: list[tuple[Parameter, tuple[Algorithm, ...]]], lang: Lang) -> Iterator[str]:
    columns = _COLUMNS[lang]
    if not any(algorithms for _, algorithms in rows):
        columns = tuple(c for c in columns if c != columns[1])
    yield _line(columns)
    yield _line(["---"] * len(columns))
    for parameter, algorithms in rows:
        cells = _cells(parameter, lang)
        yield _line([cells[0], _names(algorithms, lang), *cells[1:]] if algorithms else cells)


def _cells(parameter: Parameter, lang: Lang) -> list[str]:
    words = _WORDS[lang]
    kind = words.get(parameter.kind, parameter.kind)
    if parameter.kind == "components":
        kind = words.get("list", "list")
    if parameter.secret:
        kind += f", {words['secret']}" if lang == "en" else f"，{words['secret']}"
    return [
        f"`{parameter.name}`",
        kind,
        words["required"] if parameter.required else f"`{_default(parameter)}`",
        _range(parameter, words),
        parameter.unit[lang] if parameter.unit else "",
        parameter.hint[lang].replace("<", "\\<"),
    ]


def _range(parameter: Parameter, words: dict[str, str]) -> str:
    allowed = parameter.allowed()
    if isinstance(allowed, list):
        return ", ".join(f"`{choice}`" for choice in allowed)
    text = allowed or ""
    for word in ("characters", "entries"):
        text = text.replace(word, words.get(word, word))
    return text


def _default(parameter: Parameter) -> str:
    value = parameter.default
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_text(value)
    return json.dumps(value, ensure_ascii=False)


def _names(algorithms: tuple[Algorithm, ...], lang: Lang) -> str:
    return _WORDS[lang]["all"] if algorithms == EVERY_ALGORITHM else ", ".join(algorithms)


def _metrics(lang: Lang) -> Iterator[str]:
    yield _line([_COLUMNS[lang][1], _WORDS[lang]["metrics"]])
    yield _line(["---", "---"])
    for algorithm, names in METRICS.items():
        yield _line([f"`{algorithm}`", ", ".join(f"`{name}`" for name in names)])


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(root: Path) -> None:
    """Write the pages below a project root."""
    for lang, page in PAGES.items():
        target = root / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(parameters_page(lang), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
