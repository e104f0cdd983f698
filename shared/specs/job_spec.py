"""`JobSpec`: the union of the six algorithms, told apart by `algorithm`."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from shared.specs.base import Algorithm, BaseSpec
from shared.specs.dpo import DpoSpec
from shared.specs.grpo import GrpoSpec
from shared.specs.gspo import GspoSpec
from shared.specs.ppo import PpoSpec
from shared.specs.reward_model import RewardModelSpec
from shared.specs.sft import SftSpec

JobSpec = Annotated[
    SftSpec | DpoSpec | PpoSpec | GrpoSpec | GspoSpec | RewardModelSpec,
    Field(discriminator="algorithm"),
]

RolloutJob = PpoSpec | GrpoSpec | GspoSpec

SPECS: Final[
    dict[Algorithm, type[SftSpec | DpoSpec | PpoSpec | GrpoSpec | GspoSpec | RewardModelSpec]]
] = {
    "sft": SftSpec,
    "dpo": DpoSpec,
    "ppo": PpoSpec,
    "grpo": GrpoSpec,
    "gspo": GspoSpec,
    "reward_model": RewardModelSpec,
}
EVERY_ALGORITHM: Final[tuple[Algorithm, ...]] = tuple(SPECS)

JOB_SPEC: Final[TypeAdapter[JobSpec]] = TypeAdapter(JobSpec)


def algorithms_with(field: str) -> list[Algorithm]:
    """Return the algorithms that know a parameter, in the order of the product's table."""
    return [name for name, model in SPECS.items() if field in model.model_fields]


def every_field() -> frozenset[str]:
    """Return the names of all parameters of all algorithms."""
    return frozenset(field for model in SPECS.values() for field in model.model_fields)


COMMON_FIELDS: Final = frozenset(BaseSpec.model_fields)
