"""A spec as stored and shown: a flat dict with every default, its secrets apart, and back again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import JsonValue, SecretStr, ValidationError

from shared.ids import JobId
from shared.specs.job_spec import SPECS, JobSpec
from shared.specs.model_path import JobModel, parse_model_path
from shared.specs.parameters import described
from shared.specs.problems import SpecInvalid
from shared.specs.rewards import RewardComponent
from shared.specs.translate import field_errors
from shared.specs.wording import told

SECRET_FIELDS: Final = frozenset({"ssh_password", "ssh_private_key", "reward_model_api_key"})
MODEL_FIELDS: Final = ("model_path", "ref_model_path", "reward_model_path")


def split_secrets(spec: JobSpec) -> tuple[dict[str, JsonValue], dict[str, str]]:
    """Return the public config and the secrets by name.

    Names: `ssh_password`, `ssh_private_key`, `reward_model_api_key`, `rewards.<component>.reward_model_api_key`,
    and those of `secrets` as the user wrote them (capitals, so that they never meet the others).
    """
    secrets = _held(spec, "")
    for component in getattr(spec, "rewards", None) or ():
        secrets |= _held(component, f"rewards.{component.name}.")
    secrets |= {name: value.get_secret_value() for name, value in spec.secrets.items()}
    return job_config(spec), secrets


def job_config(spec: JobSpec) -> dict[str, JsonValue]:
    """Return every parameter with its value, flat, without a secret: what REST shows as `config`."""
    config: dict[str, JsonValue] = spec.model_dump(mode="json")
    _forget(config)
    components = config.get("rewards")
    for component in components if isinstance(components, list) else []:
        if isinstance(component, dict):
            _forget(component)
    config["secrets"] = {}
    return {"algorithm": config["algorithm"], **config}


def spec_from_config(config: Mapping[str, object]) -> JobSpec:
    """Return the spec of a stored config; fields of a newer version are left out.

    Raises:
        SpecInvalid: the config is not one that `job_config` gave.
    """
    algorithm = config.get("algorithm")
    model = next((m for name, m in SPECS.items() if name == algorithm), None)
    if model is None:
        raise SpecInvalid(
            [
                told(
                    "algorithm",
                    algorithm,
                    "not_allowed",
                    "This job's algorithm is not known here. Update this service.",
                    "此处不认识该任务的算法，请升级本服务。",
                )
            ]
        )
    known = {name: value for name, value in config.items() if name in model.model_fields}
    components = known.get("rewards")
    if isinstance(components, list):
        fields = described(RewardComponent)
        known["rewards"] = [
            {k: v for k, v in c.items() if k in fields} if isinstance(c, dict) else c
            for c in components
        ]
    try:
        return model.model_validate(known)
    except ValidationError as problem:
        raise SpecInvalid(field_errors(model, problem)) from None


def with_secrets(spec: JobSpec, secrets: Mapping[str, str]) -> JobSpec:
    """Return the spec with its secrets put back, as `split_secrets` named them; for the process that uses them."""
    changes: dict[str, Any] = _kept(spec, "", secrets)
    components = getattr(spec, "rewards", None)
    if components:
        changes["rewards"] = tuple(
            c.model_copy(update=_kept(c, f"rewards.{c.name}.", secrets)) for c in components
        )
    changes["secrets"] = {
        name: SecretStr(value) for name, value in secrets.items() if name[:1].isupper()
    }
    return spec.model_copy(update=changes)


def dependencies(spec: JobSpec) -> tuple[JobId, ...]:
    """Return the jobs that must be COMPLETED first: `depends_on`, and those whose checkpoint is used."""
    found = [JobId(job) for job in spec.depends_on]
    for field in MODEL_FIELDS:
        found += _job_named(getattr(spec, field, None))
    for component in getattr(spec, "rewards", None) or ():
        found += _job_named(component.reward_model_path)
    return tuple(dict.fromkeys(found))


def _job_named(text: str | None) -> list[JobId]:
    source = parse_model_path(text) if text else None
    return [source.job] if isinstance(source, JobModel) else []


def _held(part: JobSpec | RewardComponent, prefix: str) -> dict[str, str]:
    values = {field: getattr(part, field, None) for field in sorted(SECRET_FIELDS)}
    return {
        prefix + field: value.get_secret_value()
        for field, value in values.items()
        if isinstance(value, SecretStr)
    }


def _kept(
    part: JobSpec | RewardComponent, prefix: str, secrets: Mapping[str, str]
) -> dict[str, SecretStr]:
    return {
        field: SecretStr(secrets[prefix + field])
        for field in SECRET_FIELDS
        if field in type(part).model_fields and prefix + field in secrets
    }


def _forget(config: dict[str, JsonValue]) -> None:
    for field in SECRET_FIELDS & config.keys():
        config[field] = None
