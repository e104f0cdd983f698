"""Where a job runs: GPUs, order in the queue, what to do when its host falls silent, and the SSH host."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.specs.hints import Parameters, hint
from shared.specs.text import (
    HostName,
    JobUuids,
    Label,
    PathText,
    SecretBlock,
    SecretLine,
    SecretName,
    UserName,
)


class PlacementParameters(Parameters):
    """Resources, dependencies, host and secrets of a job."""

    num_gpus: Annotated[
        int,
        Field(ge=1, le=1024),
        hint(
            "resources",
            "GPUs on each node; on a host without GPUs, CPU slots.",
            "每个节点的 GPU 数；无 GPU 的主机上为 CPU 槽位数。",
            "gpus",
        ),
    ] = 1
    gpu_type: Annotated[
        Label | None,
        hint(
            "resources",
            "Only on GPUs whose name holds this, such as H100.",
            "只在型号名包含该文本的 GPU 上运行，例如 H100。",
        ),
    ] = None
    num_nodes: Annotated[
        int,
        Field(ge=1, le=256),
        hint("resources", "Hosts the job runs on at once.", "任务同时使用的主机数。", "nodes"),
    ] = 1
    distribution: Annotated[
        Literal["ddp", "fsdp"] | None,
        hint(
            "resources",
            "Several GPUs: ddp copies the model to each (null does so too), fsdp splits it.",
            "多 GPU 时：ddp 每卡一份模型（null 亦然），fsdp 切分模型。",
        ),
    ] = None
    priority: Annotated[
        int,
        Field(ge=0, le=100),
        hint(
            "resources",
            "Higher goes first; changeable while the job waits.",
            "数值越大越先运行；等待期间可改。",
        ),
    ] = 50
    max_retries: Annotated[
        int,
        Field(ge=0, le=100),
        hint(
            "resources",
            "New attempts after a failure that a retry can cure.",
            "可恢复的失败后最多重试几次。",
        ),
    ] = 1
    disconnect_policy: Annotated[
        Literal["keep", "stop_and_requeue"],
        hint(
            "resources",
            "When the host falls silent: keep training there, or stop it and start elsewhere.",
            "主机失联时：keep 继续在原主机训练，stop_and_requeue 停止并换主机。",
        ),
    ] = "keep"
    depends_on: Annotated[
        JobUuids,
        hint("resources", "Jobs that must be COMPLETED first, by uuid.", "须先完成的任务的 uuid。"),
    ] = ()
    run_mode: Annotated[
        Literal["local", "ssh"],
        hint(
            "connection",
            "On joined hosts (local), or on a host reached by SSH.",
            "在已加入的主机上运行（local），或通过 SSH 主机运行。",
        ),
    ] = "local"
    host: Annotated[
        HostName | None,
        hint(
            "connection",
            "Only on this joined host, by its label.",
            "只在该已加入的主机上运行（填主机名）。",
        ),
    ] = None
    ssh_host: Annotated[
        HostName | None,
        hint("connection", "Name or address of the SSH host.", "SSH 主机名或地址。"),
    ] = None
    ssh_port: Annotated[
        int, Field(ge=1, le=65_535), hint("connection", "Port of the SSH server.", "SSH 端口。")
    ] = 22
    ssh_username: Annotated[
        UserName | None,
        hint(
            "connection",
            "User on the SSH host; null takes the platform's user.",
            "SSH 用户名；null 表示平台所用的用户。",
        ),
    ] = None
    ssh_password: Annotated[
        SecretLine | None,
        hint(
            "connection",
            "Password, or use ssh_private_key. Write-only.",
            "密码，或改用 ssh_private_key。只写，不会显示。",
        ),
    ] = None
    ssh_private_key: Annotated[
        SecretBlock | None,
        hint(
            "connection",
            "Private key in OpenSSH or PEM form. Write-only.",
            "OpenSSH 或 PEM 格式的私钥。只写，不会显示。",
        ),
    ] = None
    ssh_work_dir: Annotated[
        PathText,
        hint(
            "connection",
            "Folder on the SSH host for checkpoints and logs.",
            "SSH 主机上存放检查点和日志的目录。",
        ),
    ] = "~/verl_jobs"
    secrets: Annotated[
        dict[SecretName, SecretLine],
        Field(max_length=32),
        hint(
            "connection",
            "Write-only values handed to the trainer, such as HF_TOKEN.",
            "只写的密钥，交给训练进程使用，例如 HF_TOKEN。",
        ),
    ] = Field(default_factory=dict)
