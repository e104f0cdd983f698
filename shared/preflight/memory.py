"""A rough estimate of the memory a run needs on its device, so that a hopeless job is refused before it waits.

Sources: ZeRO (Rajbhandari et al. 2020, section 3.1) for weights, gradients and Adam states; Korthikanti et al. 2022,
"Reducing Activation Recomputation", equations 1, 2 and section 5, for activations. Rough: within about 30 % for
decoder models; fragmentation, kernels' work space and the CUDA context are the flat overhead.
"""

from dataclasses import dataclass

from shared.disk.levels import in_words
from shared.preflight.disk import ADAM_BYTES_PER_PARAMETER, OPTIMIZER_BYTES
from shared.preflight.finding import Finding
from shared.preflight.model import ModelReport

CUDA_OVERHEAD = 1 << 30  # context, cuBLAS work space, fragmentation
CPU_OVERHEAD = 600 << 20  # interpreter with torch, transformers and trl imported: 433 MB measured
_FUSED_LOGITS = ("sft", "dpo", "grpo", "gspo")  # TRL 1.16 never holds all logits of a step
_LOGIT_ROWS = 256  # rows of one chunk of the fused head


@dataclass(frozen=True, slots=True)
class RunShape:
    """What of a job decides its memory. `batch` is sequences per device and micro step, `dtype_bytes` of the weights held."""

    algorithm: str
    batch: int
    context_length: int
    lora_rank: int | None = None
    dtype_bytes: int = 4
    compute_bytes: int = 2
    optim: str = "adamw_torch"
    gradient_checkpointing: bool = False
    reference_model: bool = True
    devices_sharing: int = 1
    on_cpu: bool = False


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one device, part by part."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    logits: int
    cache: int
    overhead: int

    @property
    def total(self) -> int:
        """All parts together."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.reference
            + self.activations
            + self.logits
            + self.cache
            + self.overhead
        )


def lora_parameters(model: ModelReport, rank: int) -> int:
    """Trained parameters of an all-linear adapter: rank x (inputs + outputs) of every linear layer."""
    return rank * (model.linear_widths or 0)


def estimate_memory(model: ModelReport, run: RunShape) -> MemoryEstimate | None:
    """The estimate, or None when the model's size is unknown (a hub id that was not fetched).

    weights = parameters x dtype_bytes (+ the adapter in float32); gradients = trained x 4 (LoRA, float32) or x
    dtype_bytes; optimizer = trained x 8 for Adam; reference = another copy of the weights for dpo, ppo, grpo and
    gspo with full weights, none with LoRA (the adapter is switched off). All of these are divided by
    `devices_sharing` (FSDP). Activations of a layer = tokens x hidden x 17 x compute_bytes (34 bytes per value at 2
    bytes; sdpa keeps no score matrix), for all layers, or with gradient checkpointing hidden x compute_bytes for each
    layer and one layer in full; dpo and reward_model hold two sequences a pair. cache = keys and values of the
    sequences being generated.
    """
    if model.parameters is None:
        return None
    hidden, layers = model.hidden_size or 0, model.layers or 0
    trained = model.parameters if run.lora_rank is None else lora_parameters(model, run.lora_rank)
    share = max(1, run.devices_sharing)
    weights = model.parameters * run.dtype_bytes + (0 if run.lora_rank is None else trained * 4)
    needs_copy = (
        run.lora_rank is None
        and run.reference_model
        and run.algorithm in ("dpo", "ppo", "grpo", "gspo")
    )
    sequences = run.batch * (2 if run.algorithm in ("dpo", "reward_model") else 1)
    tokens = sequences * run.context_length
    return MemoryEstimate(
        weights=weights // share,
        gradients=trained * (run.dtype_bytes if run.lora_rank is None else 4) // share,
        optimizer=trained
        * OPTIMIZER_BYTES.get(run.optim.lower(), ADAM_BYTES_PER_PARAMETER)
        // share,
        reference=model.parameters * run.dtype_bytes // share if needs_copy else 0,
        activations=_activations(tokens, hidden, layers, run),
        logits=_logits(tokens, model.vocab_size or 0, run.algorithm),
        cache=_cache(model, tokens, run),
        overhead=CPU_OVERHEAD if run.on_cpu else CUDA_OVERHEAD,
    )


def _activations(tokens: int, hidden: int, layers: int, run: RunShape) -> int:
    layer = tokens * hidden * 17 * run.compute_bytes
    return (
        layer + layers * tokens * hidden * run.compute_bytes
        if run.gradient_checkpointing
        else layers * layer
    )


def _logits(tokens: int, vocabulary: int, algorithm: str) -> int:
    if algorithm == "reward_model":
        return 0
    rows = min(tokens, _LOGIT_ROWS) if algorithm in _FUSED_LOGITS else tokens
    return 2 * rows * vocabulary * 4  # the logits and their gradient, in float32


def _cache(model: ModelReport, tokens: int, run: RunShape) -> int:
    if run.algorithm not in ("ppo", "grpo", "gspo"):
        return 0
    heads, kv = model.attention_heads, model.kv_heads
    width = (model.hidden_size or 0) * (kv / heads if heads and kv else 1)
    return int(2 * (model.layers or 0) * tokens * width * run.compute_bytes)


def check_memory(
    estimate: MemoryEstimate, have: int, *, device: str, field: str = "batch_size"
) -> Finding | None:
    """None when the estimate fits into `have` bytes; a warning within 10 % of it; else the error `memory_too_small`."""
    need = estimate.total
    if need <= have * 0.9:
        return None
    over = need > have
    parts = f"weights {in_words(estimate.weights + estimate.reference)}, gradients and optimizer {in_words(estimate.gradients + estimate.optimizer)}, activations {in_words(estimate.activations + estimate.logits + estimate.cache)}"
    parts_zh = f"权重 {in_words(estimate.weights + estimate.reference)}，梯度与优化器 {in_words(estimate.gradients + estimate.optimizer)}，激活 {in_words(estimate.activations + estimate.logits + estimate.cache)}"
    return Finding(
        "memory_too_small" if over else "memory_tight",
        field,
        f"The job needs about {in_words(need)} ({parts}); {device} has {in_words(have)}. Lower batch_size or context_length, turn on gradient_checkpointing or LoRA, or take a larger device.",
        f"任务约需 {in_words(need)}（{parts_zh}），而 {device} 只有 {in_words(have)}。请调小 batch_size 或 context_length、开启 gradient_checkpointing 或 LoRA，或换用更大的设备。",
        value=in_words(need),
        allowed=f"<= {in_words(have)}",
        severity="error" if over else "warning",
    )
