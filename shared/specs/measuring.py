"""Measuring and stopping: evaluation, a goal that ends a run early, patience and a time limit."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.specs.hints import Parameters, hint
from shared.specs.text import Label


class MeasureParameters(Parameters):
    """How a run is judged while it goes, and when it ends by itself."""

    eval_steps: Annotated[
        int,
        Field(ge=1, le=1_000_000),
        hint(
            "measure",
            "Evaluation every so many steps, where eval_data_path is given.",
            "每隔多少步评估一次（需提供 eval_data_path）。",
            "steps",
        ),
    ] = 20
    eval_generate: Annotated[
        bool,
        hint(
            "measure",
            "Also answer evaluation prompts greedily and score the answers: eval_accuracy.",
            "同时对评估提示做贪心生成并打分，得到 eval_accuracy。",
        ),
    ] = False
    eval_samples: Annotated[
        int,
        Field(ge=1, le=1_000_000),
        hint(
            "measure",
            "Evaluation prompts answered each time.",
            "每次评估生成回答的提示数。",
            "examples",
        ),
    ] = 100
    stop_metric: Annotated[
        Label | None,
        hint(
            "measure",
            "A metric that ends the job as COMPLETED once it reaches stop_value, such as eval_accuracy.",
            "达到 stop_value 即以 COMPLETED 结束任务的指标，例如 eval_accuracy。",
        ),
    ] = None
    stop_value: Annotated[
        Annotated[float, Field(ge=-1e12, le=1e12)] | None,
        hint(
            "measure",
            "The goal: losses and divergences fall to it, all other metrics rise to it.",
            "目标值：损失与散度类指标降到该值，其余指标升到该值。",
        ),
    ] = None
    early_stopping_patience: Annotated[
        Annotated[int, Field(ge=1, le=10_000)] | None,
        hint(
            "measure",
            "Ends the job after so many evaluations without an improvement.",
            "连续多少次评估没有改进就结束任务。",
        ),
    ] = None
    time_limit_minutes: Annotated[
        Annotated[float, Field(gt=0, le=525_600)] | None,
        hint(
            "measure",
            "Ends an attempt as FAILED (time_limit), with a last checkpoint; a retry goes on from there.",
            "一次尝试达到该时长后保存检查点并以 FAILED（time_limit）结束；重试将从该检查点继续。",
            "minutes",
        ),
    ] = None
