"""Whether a LoRA adapter belongs to a base model: module names and shapes, from the two sets of headers."""

from collections.abc import Mapping

from shared.preflight.finding import Finding, shown
from shared.preflight.safetensors_header import FIELD, Tensor

_PREFIX = "base_model.model."


def check_adapter_fits(
    adapter: Mapping[str, Tensor], base: Mapping[str, Tensor], base_name: str
) -> list[Finding]:
    """At most one finding: the first adapter module that the base lacks or has with other widths.

    A weight `base_model.model.<module>.lora_A.weight` (rank, in) or `lora_B` (out, rank) belongs to
    `<module>.weight` (out, in) of the base.
    """
    for name, tensor in adapter.items():
        module, part, _ = name.removeprefix(_PREFIX).partition(".lora_")
        if not part or len(tensor.shape) != 2 or ".lora_embedding" in name:
            continue
        under = base.get(f"{module}.weight") or base.get(f"{module.removeprefix('model.')}.weight")
        if under is None:
            return [
                _mismatch(module, base_name, "which the base does not have", "而基础模型没有该模块")
            ]
        if len(under.shape) != 2:
            continue
        at_in, at_out = under.shape[1], under.shape[0]
        wanted = {at_in, at_out} if ".lora_A" in name or ".lora_B" in name else set()
        mine = tensor.shape[1] if ".lora_A" in name else tensor.shape[0]
        if wanted and mine not in wanted:
            return [
                _mismatch(
                    module,
                    base_name,
                    f"with width {mine}, where the base has {at_out} x {at_in}",
                    f"宽度为 {mine}，而基础模型为 {at_out} × {at_in}",
                )
            ]
    return []


def _mismatch(module: str, base: str, en: str, zh: str) -> Finding:
    label, name = shown(module), shown(base, 200)
    return Finding(
        "adapter_mismatch",
        FIELD,
        f"The adapter changes {label}, {en} ({name}). Use the base model that it was trained on.",
        f"该适配器修改 {label}，{zh}（{name}）。请使用训练它时的基础模型。",
        value=label,
        allowed=name,
    )
