"""The parameters every algorithm has: what is trained on what, for how long, and how it is saved."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shared.specs.hints import hint
from shared.specs.measuring import MeasureParameters
from shared.specs.placement import PlacementParameters
from shared.specs.text import Block, JobName, ModelPath, PathText, Tags
from shared.specs.tuning import LoraParameters, OptimizerParameters

Algorithm = Literal["sft", "dpo", "ppo", "grpo", "gspo", "reward_model"]
ALGORITHM_EN = "The training algorithm; it decides which other parameters there are."
ALGORITHM_ZH = "训练算法；它决定还有哪些参数。"
AlgorithmHint = hint("essential", ALGORITHM_EN, ALGORITHM_ZH)


def _no_limit(value: object) -> object:
    return None if type(value) is int and value == -1 else value


MaxSteps = Annotated[
    Annotated[int, Field(ge=1, le=1_000_000_000)] | None, BeforeValidator(_no_limit)
]


class EssentialParameters(LoraParameters, OptimizerParameters):
    """What a user always decides."""

    name: Annotated[
        JobName,
        hint(
            "essential",
            "What you call the job; left out, it is made from the algorithm and the model.",
            "任务名称；省略时由算法和模型名生成。",
        ),
    ] = ""
    description: Annotated[
        Block | None,
        hint("essential", "A note for yourself and others.", "备注，供自己和他人查看。"),
    ] = None
    tags: Annotated[
        Tags,
        hint("essential", "Words to find the job by, at most 20.", "便于查找的标签，最多 20 个。"),
    ] = ()
    model_path: Annotated[
        ModelPath,
        hint(
            "essential",
            "The model to train: a Hugging Face id, a folder on the host, or job:<uuid>[@<step>|@best|@last].",
            "要训练的模型：Hugging Face id、主机上的目录，或 job:<uuid>[@<步数>|@best|@last]。",
        ),
    ]
    train_data_path: Annotated[
        PathText,
        hint(
            "essential",
            "Training data: a .jsonl, .json, .csv or .parquet file, an uploaded dataset's id, or a Hugging Face id.",
            "训练数据：.jsonl、.json、.csv 或 .parquet 文件、已上传数据集的 id，或 Hugging Face id。",
        ),
    ]
    eval_data_path: Annotated[
        PathText | None,
        hint(
            "essential",
            "Held-out data of the same form; needed for eval_loss, best checkpoint and early stopping.",
            "同格式的留出数据；eval_loss、最佳检查点和早停都需要它。",
        ),
    ] = None
    num_epochs: Annotated[
        float,
        Field(gt=0, le=10_000),
        hint(
            "essential",
            "How often the data is gone through; max_steps overrides it.",
            "数据遍历次数；设置 max_steps 时以其为准。",
            "epochs",
        ),
    ] = 1.0
    batch_size: Annotated[
        int,
        Field(ge=1, le=65_536),
        hint(
            "essential",
            "Examples per device and step; in ppo, grpo and gspo prompts per step. Smaller when memory runs out.",
            "每设备每步的样本数；ppo、grpo、gspo 中为每步的提示数。显存不足时调小。",
            "examples",
        ),
    ] = 2


class TrainingParameters(EssentialParameters):
    """How long, how exact, and how often something is saved."""

    max_steps: Annotated[
        MaxSteps,
        hint(
            "training",
            "Ends after so many optimizer steps; null (or -1) lets num_epochs decide.",
            "优化步数上限；null（或 -1）表示由 num_epochs 决定。",
            "steps",
        ),
    ] = None
    gradient_accumulation_steps: Annotated[
        int,
        Field(ge=1, le=65_536),
        hint(
            "training",
            "Batches added up before one optimizer step: a larger batch for the same memory.",
            "累积多少个批次才更新一次：显存不变，等效批次更大。",
        ),
    ] = 1
    context_length: Annotated[
        int,
        Field(ge=8, le=1_048_576),
        hint(
            "training",
            "Longest sequence, prompt and completion together. Shorter when memory runs out.",
            "序列最大长度（提示与回答之和）。显存不足时调小。",
            "tokens",
        ),
    ] = 512
    save_steps: Annotated[
        int,
        Field(ge=1, le=1_000_000),
        hint(
            "training", "A checkpoint every so many steps.", "每隔多少步保存一个检查点。", "steps"
        ),
    ] = 20
    save_total_limit: Annotated[
        int,
        Field(ge=1, le=10_000),
        hint(
            "training",
            "Checkpoints kept, beside the first, the best and the last.",
            "保留的检查点数量（首个、最佳和最后一个另计）。",
        ),
    ] = 3
    logging_steps: Annotated[
        int,
        Field(ge=1, le=1_000_000),
        hint("training", "Metrics every so many steps.", "每隔多少步记录一次指标。", "steps"),
    ] = 1
    seed: Annotated[
        int,
        Field(ge=0, le=4_294_967_295),
        hint(
            "training",
            "The same seed on the same host gives the same run.",
            "同一主机上相同的种子得到相同的结果。",
        ),
    ] = 42
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        hint(
            "training",
            "Number format; auto is bf16 where the device can do it, else fp32.",
            "数值精度；auto 在设备支持时用 bf16，否则用 fp32。",
        ),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool,
        hint(
            "training",
            "Saves memory for about 20 % more time; on by default as in TRL.",
            "以约 20% 的时间换取显存；与 TRL 一致，默认开启。",
        ),
    ] = True
    engine: Annotated[
        Literal["trl", "verl"],
        hint(
            "training",
            "What runs the training; verl (grpo, ppo) must be installed on the host.",
            "训练引擎；verl（grpo、ppo）须已安装在主机上。",
        ),
    ] = "trl"


class BaseSpec(PlacementParameters, MeasureParameters, TrainingParameters):
    """All parameters that belong to every algorithm."""
