"""Direct preference optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.specs.base import AlgorithmHint, BaseSpec
from shared.specs.hints import hint
from shared.specs.rewards import RuleParameters
from shared.specs.text import ModelPath


class DpoSpec(RuleParameters, BaseSpec):
    """Preference pairs; a parsed spec carries the strength in `beta`, whichever name the user chose."""

    algorithm: Annotated[Literal["dpo"], AlgorithmHint]
    beta: Annotated[
        float,
        Field(gt=0, le=100),
        hint(
            "rl",
            "How closely the model stays to the reference; 0.1-0.5 is usual.",
            "与参考模型的贴近程度；通常 0.1-0.5。",
        ),
    ] = 0.1
    kl_coef: Annotated[
        Annotated[float, Field(gt=0, le=100)] | None,
        hint(
            "rl", "Another name for beta; give one of them.", "beta 的另一个名称，二者填一个即可。"
        ),
    ] = None
    ref_model_path: Annotated[
        ModelPath | None,
        hint(
            "rl",
            "Reference model; null takes the model as it was at the start.",
            "参考模型；null 表示训练开始时的模型。",
        ),
    ] = None
