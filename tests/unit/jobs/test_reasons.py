"""Every reason has words in both languages and a verdict on retrying."""

from __future__ import annotations

import re

import pytest

from shared.jobs.reasons import REASONS, Reason, Retry

HAN = re.compile(r"[\u4e00-\u9fff]")
FAILURES = list(Reason)[list(Reason).index(Reason.CUDA_OOM) :]


def test_the_table_is_total() -> None:
    assert set(REASONS) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_speaks_both_languages(reason: Reason) -> None:
    text = REASONS[reason]
    assert text.sentence("en").endswith(".")
    assert not HAN.search(text.sentence("en"))
    assert text.sentence("zh").endswith("。")
    assert HAN.search(text.sentence("zh"))
    assert bool(text.hint("en")) == bool(text.hint("zh"))
    if text.hint("en"):
        assert not HAN.search(text.hint("en") or "")
        assert HAN.search(text.hint("zh") or "")
        assert (text.hint("en") or "").endswith(".")
        assert (text.hint("zh") or "").endswith("。")


@pytest.mark.parametrize("reason", [r for r in FAILURES if r is not Reason.HOST_REBOOTED])
def test_each_failure_has_a_remedy(reason: Reason) -> None:
    assert REASONS[reason].hint("en")


@pytest.mark.parametrize("reason", Reason)
def test_settings_and_commands_are_named_alike_in_both_languages(reason: Reason) -> None:
    text = REASONS[reason]
    names = re.compile(r"\b[a-z]+_[a-z_]+\b|\bTRAINYARD_[A-Z_]+\b|`[^`]+`")
    for en, zh in ((text.en, text.zh), (text.hint_en, text.hint_zh)):
        assert sorted(set(names.findall(en))) == sorted(set(names.findall(zh)))


def test_what_can_never_work_is_never_retried() -> None:
    for reason in (
        Reason.DATASET_MISSING,
        Reason.DATASET_INVALID,
        Reason.MODEL_MISSING,
        Reason.MODEL_INVALID,
        Reason.CONFIG_INVALID,
        Reason.PATH_FORBIDDEN,
        Reason.NAN_LOSS,
        Reason.TIME_LIMIT,
        Reason.USER,
    ):
        assert REASONS[reason].retry is Retry.NEVER
    for reason in (Reason.HOST_LOST, Reason.HOST_REBOOTED, Reason.HOST_REFUSED, Reason.DRAINED):
        assert REASONS[reason].retry is Retry.FREE
