"""Bodies that several tests share: the smallest one of each algorithm, and what a refusal says."""

from collections.abc import Callable
from typing import Any

import pytest

from shared.specs import FieldError, SpecInvalid, parse_job_spec

Bodies = dict[str, dict[str, Any]]
Refused = Callable[[object], dict[str, FieldError]]


@pytest.fixture
def minimal() -> Bodies:
    """The smallest body of each algorithm."""
    paths = {"model_path": "Qwen/Qwen2.5-0.5B", "train_data_path": "datasets/sales.jsonl"}
    rule = {"reward_fn_type": "math_verify"}
    return {
        "sft": {"algorithm": "sft", **paths},
        "dpo": {"algorithm": "dpo", **paths},
        "ppo": {"algorithm": "ppo", **paths, **rule},
        "grpo": {"algorithm": "grpo", **paths, **rule},
        "gspo": {"algorithm": "gspo", **paths},
        "reward_model": {"algorithm": "reward_model", **paths},
    }


@pytest.fixture
def refused() -> Refused:
    """Parse a body that must be refused; the errors by field."""

    def parse(body: object) -> dict[str, FieldError]:
        with pytest.raises(SpecInvalid) as caught:
            parse_job_spec(body)
        return {error.field: error for error in caught.value.errors}

    return parse
