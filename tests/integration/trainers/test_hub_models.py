"""Models of the Hub: the revision that was asked for, also below an adapter, and reward models as folders."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # those of torch, transformers and peft are not ours
]


def test_the_revision_is_asked_for_and_kept_below_an_adapter(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path
) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from services.gpu_agent.trainers import loading
    from services.gpu_agent.trainers.settings import SftSettings

    asked: list[tuple[str, str]] = []

    def standing_for(real: Any) -> Any:
        def from_pretrained(name: str, *, revision: str, **options: Any) -> Any:
            asked.append((name, revision))
            return real.from_pretrained(tiny if name == "org/name" else name, **options)

        return SimpleNamespace(from_pretrained=from_pretrained)

    monkeypatch.setattr(loading, "AutoModelForCausalLM", standing_for(AutoModelForCausalLM))
    monkeypatch.setattr(loading, "AutoTokenizer", standing_for(AutoTokenizer))
    spec: Any = SimpleNamespace(model_path="org/name@v1.2", checkpoint_dir=tmp_path)
    numbers = loading.numerics("fp32", "cpu", lora=True)
    loaded = loading.load(spec, SftSettings(lora_enabled=True), numbers)
    assert asked == [("org/name", "v1.2")] * 2
    loaded.model.name_or_path = "org/name"
    get_peft_model(loaded.model, loaded.lora).save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "v1.2")
    asked.clear()
    loading.reference(str(tmp_path / "adapter"), numbers)
    assert asked == [("org/name", "v1.2")]
    asked.clear()
    spec.model_path = str(tiny)
    loading.load(spec, SftSettings(), numbers)
    assert {revision for _, revision in asked} == {"main"}


def test_a_reward_model_of_the_hub_becomes_a_folder(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    from services.gpu_agent.trainers import loading

    def fetched(name: str, *, revision: str | None, **_: Any) -> str:
        return f"/cache/{name}/{revision}"

    monkeypatch.setattr(loading, "snapshot_download", fetched)
    given = {
        "reward_model_path": "org/rm@v2",
        "rewards.1.reward_model_path": str(tiny),
        "ref_model_path": "org/ref",
    }
    assert loading.reward_models(given) == given | {"reward_model_path": "/cache/org/rm/v2"}
