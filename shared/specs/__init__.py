"""Job specs: what a user may ask of each algorithm, parsed once and trusted from there on."""

from shared.specs.advice import Advice, advise
from shared.specs.base import Algorithm
from shared.specs.config import (
    dependencies,
    job_config,
    spec_from_config,
    split_secrets,
    with_secrets,
)
from shared.specs.forms import form_schema, job_schema
from shared.specs.job_spec import EVERY_ALGORITHM, SPECS, JobSpec
from shared.specs.metrics import GENERAL_METRICS, METRICS, metric_goal
from shared.specs.model_path import (
    HubModel,
    JobModel,
    LocalModel,
    ModelPathInvalid,
    ModelSource,
    StageModel,
    parse_model_path,
)
from shared.specs.parse import parse_job_spec
from shared.specs.problems import FieldError, SpecInvalid

__all__ = [
    "EVERY_ALGORITHM",
    "GENERAL_METRICS",
    "METRICS",
    "SPECS",
    "Advice",
    "Algorithm",
    "FieldError",
    "HubModel",
    "JobModel",
    "JobSpec",
    "LocalModel",
    "ModelPathInvalid",
    "ModelSource",
    "SpecInvalid",
    "StageModel",
    "advise",
    "dependencies",
    "form_schema",
    "job_config",
    "job_schema",
    "metric_goal",
    "parse_job_spec",
    "parse_model_path",
    "spec_from_config",
    "split_secrets",
    "with_secrets",
]
