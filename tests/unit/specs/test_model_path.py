"""The forms of a model path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import JobId
from shared.specs import (
    HubModel,
    JobModel,
    LocalModel,
    ModelPathInvalid,
    ModelSource,
    StageModel,
    parse_model_path,
)

JOB = JobId("0190c0de-0000-7000-8000-000000000001")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("gpt2", HubModel("gpt2")),
        ("Qwen/Qwen2.5-0.5B", HubModel("Qwen/Qwen2.5-0.5B")),
        ("Qwen/Qwen2.5-0.5B@main", HubModel("Qwen/Qwen2.5-0.5B", "main")),
        ("/models/mine", LocalModel("/models/mine")),
        ("./mine", LocalModel("./mine")),
        ("../mine", LocalModel("../mine")),
        ("~/mine", LocalModel("~/mine")),
        ("a/b/c", LocalModel("a/b/c")),
        (".trainyard/models/tiny", LocalModel(".trainyard/models/tiny")),
        ("models/my model", LocalModel("models/my model")),
        (f"job:{JOB}", JobModel(JOB)),
        (f"job:{JOB.upper()}", JobModel(JOB)),
        (f"job:{JOB}@best", JobModel(JOB, "best")),
        (f"job:{JOB}@last", JobModel(JOB, "last")),
        (f"job:{JOB}@0", JobModel(JOB, 0)),
        (f"job:{JOB}@120", JobModel(JOB, 120)),
        ("stage:sft", StageModel("sft")),
        ("stage:sft@best", StageModel("sft", "best")),
    ],
)
def test_each_form_is_read(text: str, source: ModelSource) -> None:
    assert parse_model_path(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " gpt2",
        "job:",
        "job:x",
        "job:{" + JOB + "}x",
        f"job:{JOB}@",
        f"job:{JOB}@-1",
        f"job:{JOB}@newest",
        f"job:{JOB}@" + "9" * 5000,
        "job:" + "0" * 5000,
        "stage:",
        "stage:a b",
        "stage:a@x",
        "https://host/model",
        "s3://bucket/model",
    ],
)
def test_what_is_no_form_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ModelPathInvalid) as caught:
        parse_model_path(text)
    assert len(caught.value.en) > 20
    assert len(caught.value.zh) > 8


@given(st.text() | st.text().map("job:".__add__) | st.text().map("stage:".__add__))
def test_any_text_is_a_form_or_is_refused(text: str) -> None:
    try:
        source = parse_model_path(text)
    except ModelPathInvalid:
        return
    assert isinstance(source, (HubModel, LocalModel, JobModel, StageModel))
