"""Why a job is in its status: one total table of sentence, remedy and retry verdict, in two languages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Lang = Literal["en", "zh"]


class Retry(StrEnum):
    """What the scheduler does with an attempt that ended for a reason."""

    FREE = "free"
    """Try again; the job is not to blame, so no retry is spent."""
    SPEND = "spend"
    """Try again while `max_retries` lasts."""
    NEVER = "never"
    """The same input gives the same failure."""


class Reason(StrEnum):
    """Every reason there is."""

    # waiting
    ASSIGNED = "assigned"
    NO_HOST_ONLINE = "no_host_online"
    NOT_ENOUGH_GPUS = "not_enough_gpus"
    GPU_TYPE_MISSING = "gpu_type_missing"
    HOST_PINNED = "host_pinned"
    HOST_DRAINED = "host_drained"
    WAITS_FOR_JOB = "waits_for_job"
    CHECKPOINT_ELSEWHERE = "checkpoint_elsewhere"
    QUEUED_BEHIND = "queued_behind"
    RETRY_BACKOFF = "retry_backoff"
    HOST_REFUSED = "host_refused"
    # running
    DISCONNECTED = "disconnected"
    STOPPING = "stopping"
    # ended or paused by someone
    USER = "user"
    DRAINED = "drained"
    TARGET_REACHED = "target_reached"
    EARLY_STOPPED = "early_stopped"
    CANCEL_TOO_LATE = "cancel_too_late"
    DEPENDENCY_FAILED = "dependency_failed"
    DELETED = "deleted"
    REWARD_UNAVAILABLE = "reward_unavailable"
    # failures
    CUDA_OOM = "cuda_oom"
    HOST_OOM = "host_oom"
    NAN_LOSS = "nan_loss"
    DATASET_MISSING = "dataset_missing"
    DATASET_INVALID = "dataset_invalid"
    MODEL_MISSING = "model_missing"
    MODEL_INVALID = "model_invalid"
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"
    CONFIG_INVALID = "config_invalid"
    PATH_FORBIDDEN = "path_forbidden"
    DISK_FULL = "disk_full"
    GPU_UNUSABLE = "gpu_unusable"
    SECRET_UNAVAILABLE = "secret_unavailable"
    NETWORK = "network"
    KILLED = "killed"
    STALLED = "stalled"
    TIME_LIMIT = "time_limit"
    EXIT_UNKNOWN = "exit_unknown"
    HOST_LOST = "host_lost"
    HOST_REBOOTED = "host_rebooted"
    START_FAILED = "start_failed"
    CODE_ERROR = "code_error"


@dataclass(frozen=True, slots=True)
class ReasonText:
    """A sentence and a remedy for the user, and whether a retry makes sense."""

    retry: Retry
    en: str
    zh: str
    hint_en: str = ""
    hint_zh: str = ""

    def sentence(self, lang: Lang) -> str:
        """Return what happened, in the user's language."""
        return self.zh if lang == "zh" else self.en

    def hint(self, lang: Lang) -> str | None:
        """Return what to do about it, or None where nothing is to be done."""
        return (self.hint_zh if lang == "zh" else self.hint_en) or None


_OOM_EN = "Use a smaller batch_size with more gradient_accumulation_steps, a shorter context_length, gradient_checkpointing, LoRA (lora_enabled), or a larger GPU."
_OOM_ZH = "请减小 batch_size 并增大 gradient_accumulation_steps，缩短 context_length，开启 gradient_checkpointing，使用 LoRA（lora_enabled），或换用更大的 GPU。"

REASONS: dict[Reason, ReasonText] = {
    Reason.ASSIGNED: ReasonText(
        Retry.FREE, "Assigned to a host; starting.", "已分配主机，正在启动。"
    ),
    Reason.NO_HOST_ONLINE: ReasonText(
        Retry.FREE,
        "No agent is online.",
        "没有在线的 agent。",
        "Start one with `trainyard agent`, or add a host.",
        "请用 `trainyard agent` 启动一个，或添加主机。",
    ),
    Reason.NOT_ENOUGH_GPUS: ReasonText(
        Retry.FREE,
        "No host has enough free GPUs.",
        "没有主机有足够的空闲 GPU。",
        "Wait for running jobs, lower num_gpus, or add a host.",
        "请等待其他任务结束，减小 num_gpus，或添加主机。",
    ),
    Reason.GPU_TYPE_MISSING: ReasonText(
        Retry.FREE,
        "No online host has the requested gpu_type.",
        "没有在线主机具备所请求的 gpu_type。",
        "Change or remove gpu_type, or add such a host.",
        "请修改或去掉 gpu_type，或添加这样的主机。",
    ),
    Reason.HOST_PINNED: ReasonText(
        Retry.FREE,
        "The job is pinned to a host that cannot take it now.",
        "任务指定的主机目前无法接收它。",
        "Bring that host online, or submit without host.",
        "请让该主机上线，或提交时不指定 host。",
    ),
    Reason.HOST_DRAINED: ReasonText(
        Retry.FREE,
        "Every suitable host is drained.",
        "所有合适的主机都处于排空状态。",
        "Undrain a host with `trainyard hosts undrain`.",
        "请用 `trainyard hosts undrain` 恢复一台主机。",
    ),
    Reason.WAITS_FOR_JOB: ReasonText(
        Retry.FREE, "Waits for another job to complete.", "正在等待另一个任务完成。"
    ),
    Reason.CHECKPOINT_ELSEWHERE: ReasonText(
        Retry.FREE,
        "The checkpoint it needs lies on a host that cannot take it now.",
        "所需的检查点位于目前无法接收任务的主机上。",
        "Bring that host online, or free GPUs on it.",
        "请让该主机上线，或释放其 GPU。",
    ),
    Reason.QUEUED_BEHIND: ReasonText(
        Retry.FREE, "Free GPUs are kept for a job ahead of it.", "空闲 GPU 已为前面的任务保留。"
    ),
    Reason.RETRY_BACKOFF: ReasonText(
        Retry.FREE, "Waits before it is tried again.", "等待一段时间后重试。"
    ),
    Reason.HOST_REFUSED: ReasonText(
        Retry.FREE,
        "The host refused the run; it is placed again.",
        "主机拒绝了本次运行，正在重新分配。",
    ),
    Reason.DISCONNECTED: ReasonText(
        Retry.FREE,
        "The host is silent; training goes on there and its data arrives when it is back.",
        "主机失联；训练仍在该主机上继续，恢复连接后数据会补齐。",
        "Check the host's network; nothing is lost.",
        "请检查主机网络；数据不会丢失。",
    ),
    Reason.STOPPING: ReasonText(
        Retry.FREE, "Stopping; a checkpoint is saved first.", "正在停止，会先保存检查点。"
    ),
    Reason.USER: ReasonText(Retry.NEVER, "At the user's request.", "由用户操作。"),
    Reason.DRAINED: ReasonText(
        Retry.FREE,
        "The host was drained; the job goes on where its newest checkpoint can be read, if need be on this host once it takes jobs again.",
        "主机被排空；任务将在能读取其最新检查点的主机上继续，若只有本机可读，则待本机恢复接收任务后继续。",
    ),
    Reason.TARGET_REACHED: ReasonText(
        Retry.NEVER, "stop_metric reached stop_value.", "stop_metric 已达到 stop_value。"
    ),
    Reason.EARLY_STOPPED: ReasonText(
        Retry.NEVER,
        "The evaluation did not improve for early_stopping_patience evaluations.",
        "评估指标连续 early_stopping_patience 次没有改善。",
    ),
    Reason.CANCEL_TOO_LATE: ReasonText(
        Retry.NEVER,
        "It had already finished when the cancel arrived.",
        "取消到达时任务已经完成。",
    ),
    Reason.DEPENDENCY_FAILED: ReasonText(
        Retry.NEVER,
        "A job it depends on failed or was cancelled.",
        "它所依赖的任务失败或被取消。",
        "Retry that job, then this one.",
        "请先重试被依赖的任务，再重试本任务。",
    ),
    Reason.DELETED: ReasonText(Retry.NEVER, "Deleted.", "已删除。"),
    Reason.REWARD_UNAVAILABLE: ReasonText(
        Retry.NEVER,
        "Too few rewards could be computed.",
        "可计算的奖励过少。",
        "Check the reward provider, then resume.",
        "请检查奖励服务，然后恢复任务。",
    ),
    Reason.CUDA_OOM: ReasonText(
        Retry.SPEND, "CUDA ran out of memory.", "CUDA 显存不足。", _OOM_EN, _OOM_ZH
    ),
    Reason.HOST_OOM: ReasonText(
        Retry.SPEND,
        "The host ran out of memory.",
        "主机内存不足。",
        "Use a smaller batch_size or model, or a host with more memory.",
        "请减小 batch_size 或换用更小的模型，或使用内存更大的主机。",
    ),
    Reason.NAN_LOSS: ReasonText(
        Retry.NEVER,
        "The loss or the gradient became NaN or infinite.",
        "损失或梯度变为 NaN 或无穷大。",
        "Lower learning_rate, set max_grad_norm, use bf16 instead of fp16; the last finite checkpoint is kept.",
        "请降低 learning_rate，设置 max_grad_norm，用 bf16 代替 fp16；最近的正常检查点已保留。",
    ),
    Reason.DATASET_MISSING: ReasonText(
        Retry.NEVER,
        "The dataset was not found on the host.",
        "主机上找不到数据集。",
        "Check train_data_path and eval_data_path on that host.",
        "请检查该主机上的 train_data_path 和 eval_data_path。",
    ),
    Reason.DATASET_INVALID: ReasonText(
        Retry.NEVER,
        "The dataset does not fit the algorithm.",
        "数据集不符合该算法的要求。",
        "Mend the rows that the message names.",
        "请修正消息中指出的行。",
    ),
    Reason.MODEL_MISSING: ReasonText(
        Retry.NEVER,
        "The model was not found.",
        "找不到模型。",
        "Check model_path: a Hugging Face id, a local folder on that host, or job:<uuid>.",
        "请检查 model_path：Hugging Face 模型名、该主机上的本地目录，或 job:<uuid>。",
    ),
    Reason.MODEL_INVALID: ReasonText(
        Retry.NEVER,
        "The model could not be loaded.",
        "模型无法加载。",
        "Check that the folder holds config.json, a tokenizer and whole safetensors files.",
        "请确认目录中有 config.json、分词器和完整的 safetensors 文件。",
    ),
    Reason.CHECKPOINT_CORRUPT: ReasonText(
        Retry.NEVER,
        "A checkpoint is damaged.",
        "检查点已损坏。",
        "Retry from an older checkpoint.",
        "请从更早的检查点重试。",
    ),
    Reason.CONFIG_INVALID: ReasonText(
        Retry.NEVER,
        "The parameters do not work on this host.",
        "参数在该主机上不可用。",
        "Change the parameter that the message names.",
        "请修改消息中指出的参数。",
    ),
    Reason.PATH_FORBIDDEN: ReasonText(
        Retry.NEVER,
        "The path lies outside the allowed folders.",
        "路径不在允许的目录内。",
        "Add its folder to TRAINYARD_DATA_ROOTS.",
        "请将其所在目录加入 TRAINYARD_DATA_ROOTS。",
    ),
    Reason.DISK_FULL: ReasonText(
        Retry.FREE,
        "The disk is full.",
        "磁盘已满。",
        "Free space there: the job then goes on by itself from its last good checkpoint. Or lower save_total_limit, raise save_steps, use LoRA.",
        "请在该处释放空间，任务随后会从最近的完好检查点自动继续；也可减小 save_total_limit、增大 save_steps 或使用 LoRA。",
    ),
    Reason.GPU_UNUSABLE: ReasonText(
        Retry.SPEND,
        "A GPU of the host does not work.",
        "主机的 GPU 无法使用。",
        "Check `nvidia-smi` and the driver on that host.",
        "请在该主机上检查 `nvidia-smi` 和驱动。",
    ),
    Reason.SECRET_UNAVAILABLE: ReasonText(
        Retry.SPEND,
        "The job's secrets could not be fetched.",
        "无法获取任务的密钥。",
        "Check that the api is reachable from the host.",
        "请检查主机能否连到 api。",
    ),
    Reason.NETWORK: ReasonText(
        Retry.SPEND,
        "A download failed.",
        "下载失败。",
        "Check the host's network, set HF_ENDPOINT, or use a local folder.",
        "请检查主机网络，设置 HF_ENDPOINT，或使用本地目录。",
    ),
    Reason.KILLED: ReasonText(
        Retry.SPEND,
        "The trainer was killed from outside.",
        "训练进程被外部终止。",
        "Retry resumes from the newest checkpoint.",
        "重试将从最新的检查点继续。",
    ),
    Reason.STALLED: ReasonText(
        Retry.SPEND,
        "The trainer made no progress and was stopped.",
        "训练长时间没有进展，已被停止。",
        "See the stack dump in the log.",
        "请查看日志中的堆栈信息。",
    ),
    Reason.TIME_LIMIT: ReasonText(
        Retry.NEVER,
        "time_limit_minutes was reached.",
        "已达到 time_limit_minutes。",
        "Retry goes on from the last checkpoint for as long again; clone the job to set another limit.",
        "重试将从最后的检查点继续，时限重新计算；要更改时限请克隆任务。",
    ),
    Reason.EXIT_UNKNOWN: ReasonText(
        Retry.SPEND,
        "The trainer is gone and left no result.",
        "训练进程已消失且没有留下结果。",
        "Retry resumes from the newest checkpoint.",
        "重试将从最新的检查点继续。",
    ),
    Reason.HOST_LOST: ReasonText(
        Retry.FREE,
        "The host was declared lost.",
        "主机已被判定丢失。",
        "The job goes on from the newest checkpoint that can be read.",
        "任务将从可读取的最新检查点继续。",
    ),
    Reason.HOST_REBOOTED: ReasonText(Retry.FREE, "The host was rebooted.", "主机已重启。"),
    Reason.START_FAILED: ReasonText(
        Retry.SPEND,
        "The trainer process could not be started.",
        "无法启动训练进程。",
        "See the agent's log on that host.",
        "请查看该主机上 agent 的日志。",
    ),
    Reason.CODE_ERROR: ReasonText(
        Retry.SPEND,
        "The trainer raised an error.",
        "训练程序报错。",
        "The log ends with the error; report it if it is not yours.",
        "错误信息在日志末尾；如果不是您的问题，请反馈给我们。",
    ),
}
