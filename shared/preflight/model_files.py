"""The files of a model folder: its weights with all shards, and its small JSON files, read with bounds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.preflight.finding import Finding, shown
from shared.preflight.json_text import too_deep
from shared.preflight.safetensors_header import FIELD, Tensor, corrupt_file, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_JSON_BYTES = 64 << 20
_INDEX_BYTES = 256 << 20
_SHARDS = 2000
# Optimizer states and arguments that a training checkpoint holds beside its weights.
_NOT_WEIGHTS = {
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "v_head.pt",
}
_PICKLE_ENDINGS = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


@dataclass(slots=True)
class Weights:
    """All tensors of a model over its files, their bytes, and what is wrong."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    bytes: int = 0
    errors: list[Finding] = field(default_factory=list)


def read_weights(folder: Path, single: str = SINGLE, index: str | None = INDEX) -> Weights:
    """Headers of the weights in `folder`: one file, or the shards that the index names; never raises."""
    weights = Weights()
    if index is not None and (folder / index).is_file():
        _read_shards(folder, index, weights)
    elif (folder / single).is_file():
        _add(folder / single, weights)
    else:
        weights.errors.append(_no_weights(folder, single))
    if not weights.errors and not weights.tensors:
        weights.errors.append(corrupt_file(single, "it holds no tensors", "文件中没有张量"))
    return weights


def _read_shards(folder: Path, index: str, weights: Weights) -> None:
    content = read_json(folder / index, _INDEX_BYTES)
    if isinstance(content, Finding):
        weights.errors.append(content)
        return
    mapping = content.get("weight_map")
    if (
        not isinstance(mapping, dict)
        or not mapping
        or not all(isinstance(name, str) for name in mapping.values())
    ):
        weights.errors.append(corrupt_file(index, "it has no weight_map", "缺少 weight_map"))
        return
    names = sorted(set(mapping.values()))
    if len(names) > _SHARDS or any(
        Path(name).name != name or not name.endswith(".safetensors") for name in names
    ):
        weights.errors.append(
            corrupt_file(
                index,
                "it names files outside the folder or of another format",
                "引用了目录之外或其他格式的文件",
            )
        )
        return
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        listed = ", ".join(shown(name) for name in missing[:3])
        weights.errors.append(
            Finding(
                "shard_missing",
                FIELD,
                f"{len(missing)} of {len(names)} weight files are missing: {listed}. Copy or download them.",
                f"{len(names)} 个权重文件缺少 {len(missing)} 个：{listed}。请补齐。",
                value=listed,
            )
        )
        return
    for name in names:
        _add(folder / name, weights)
    absent = [name for name in mapping if name not in weights.tensors] if not weights.errors else []
    if absent:
        label = shown(absent[0])
        weights.errors.append(
            corrupt_file(mapping[absent[0]], f"the tensor {label} is missing", f"缺少张量 {label}")
        )


def _add(path: Path, weights: Weights) -> None:
    header = read_header(path)
    if isinstance(header, Finding):
        weights.errors.append(header)
        return
    weights.tensors.update(header.tensors)
    weights.bytes += header.data_bytes


def _no_weights(folder: Path, single: str) -> Finding:
    pickled = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix in _PICKLE_ENDINGS and entry.name not in _NOT_WEIGHTS
    )
    if pickled:
        name = shown(pickled[0])
        return Finding(
            "unsafe_format",
            FIELD,
            f"{name} is a pickle, which can run code when it is loaded. Convert the weights to safetensors.",
            f"{name} 是 pickle 格式，加载时可能执行代码。请把权重转换为 safetensors。",
            value=name,
            allowed=".safetensors",
        )
    gguf = sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".gguf")
    if gguf:
        return Finding(
            "unsupported_format",
            FIELD,
            f"{shown(gguf[0])} is a GGUF file for inference. Use the original safetensors weights.",
            f"{shown(gguf[0])} 是用于推理的 GGUF 文件。请使用原始 safetensors 权重。",
            value=shown(gguf[0]),
            allowed=".safetensors",
        )
    return Finding(
        "weights_missing",
        FIELD,
        f"{shown(str(folder), 200)} holds no {single}. Copy the weights into it.",
        f"{shown(str(folder), 200)} 中没有 {single}。请补上权重文件。",
        value=shown(str(folder), 200),
        allowed=single,
    )


def read_json(path: Path, most: int = _JSON_BYTES) -> dict[str, object] | Finding:
    """The object in a small JSON file of a model, or `not_a_model` with the reason; never raises."""
    try:
        if path.stat().st_size > most:
            return _bad_json(path, f"larger than {most >> 20} MiB", f"超过 {most >> 20} MiB")
        with path.open("rb") as stream:
            text = stream.read(most + 1).decode("utf-8-sig")
        if too_deep(text, 64):
            return _bad_json(path, "nested too deep", "嵌套过深")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        return _bad_json(path, shown(str(error)), shown(str(error)))
    return content if isinstance(content, dict) else _bad_json(path, "not an object", "不是对象")


def _bad_json(path: Path, en: str, zh: str) -> Finding:
    name = shown(path.name)
    return Finding(
        "not_a_model",
        FIELD,
        f"{name} cannot be read as JSON: {en}. Copy the model again.",
        f"{name} 无法按 JSON 读取：{zh}。请重新复制模型。",
        value=name,
    )


def whole(content: Mapping[str, object], *names: str) -> int | None:
    """The first of `names` that holds a positive whole number."""
    for name in names:
        value = content.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40:
            return value
    return None
