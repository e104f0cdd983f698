"""The tokenizer of a model folder: present, fitting the model's vocabulary, and with a chat template where one is needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.preflight.finding import Finding, shown
from shared.preflight.model_files import read_json
from shared.preflight.safetensors_header import FIELD

_KINDS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
)


@dataclass(frozen=True, slots=True)
class TokenizerReport:
    """Whether there is a tokenizer and a chat template, the highest token id, and what is wrong."""

    present: bool
    has_chat_template: bool
    highest_id: int | None
    errors: tuple[Finding, ...]


def check_tokenizer(folder: Path) -> TokenizerReport:
    """Look at the tokenizer files of `folder`; never raises."""
    errors: list[Finding] = []
    present = any(all((folder / name).is_file() for name in names) for names in _KINDS)
    if not present:
        errors.append(
            Finding(
                "tokenizer_missing",
                FIELD,
                f"{shown(str(folder), 200)} holds no tokenizer (tokenizer.json). Copy it from the base model.",
                f"{shown(str(folder), 200)} 中没有分词器（tokenizer.json）。请从基础模型复制。",
                allowed="tokenizer.json",
            )
        )
    settings = _optional(folder / "tokenizer_config.json", errors)
    if settings.get("auto_map"):
        errors.append(remote_code("tokenizer_config.json"))
    template = bool(settings.get("chat_template")) or (folder / "chat_template.jinja").is_file()
    template = template or bool(
        _optional(folder / "chat_template.json", errors).get("chat_template")
    )
    vocabulary = _optional(folder / "tokenizer.json", errors)
    return TokenizerReport(present, template, _highest_id(vocabulary), tuple(errors))


def remote_code(name: str) -> Finding:
    """The finding for a model that wants its own Python code to be run."""
    return Finding(
        "remote_code_required",
        FIELD,
        f"The model runs its own Python code (auto_map in {name}), which is never executed here. Use a model that transformers supports itself.",
        f"该模型需要执行自带的 Python 代码（{name} 中的 auto_map），这里不会执行。请使用 transformers 原生支持的模型。",
        value="auto_map",
    )


def _optional(path: Path, errors: list[Finding]) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    content = read_json(path)
    if isinstance(content, Finding):
        errors.append(content)
        return {}
    return content


def _highest_id(tokenizer: Mapping[str, object]) -> int | None:
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    ids: list[int] = []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        ids += [value for value in vocabulary.values() if isinstance(value, int)]
    elif isinstance(vocabulary, list) and vocabulary:
        ids.append(len(vocabulary) - 1)
    if isinstance(added, list):
        ids += [
            entry["id"]
            for entry in added
            if isinstance(entry, dict) and isinstance(entry.get("id"), int)
        ]
    return max(ids, default=None)
