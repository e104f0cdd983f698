"""Examples as token ids: the same from every file format, the same as TRL makes them, loss on the answer alone."""

# ruff: noqa: PLC0415 - importing torch takes seconds; collecting tests must not
import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.gpu_agent.trainers.examples import Example, read_examples
from services.gpu_agent.trainers.failures import TrainingFailure

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

ROWS = [
    {"prompt": "12+3=", "response": "\\boxed{15}"},
    {"prompt": "你好，请介绍产品", "response": "好的，\n这款产品…"},
    {"prompt": "a", "response": "b"},
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]


@pytest.fixture(scope="module")
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


def encode(tokenizer, examples, length=512):
    from services.gpu_agent.trainers.encoding import ExampleEncoder

    return ExampleEncoder(tokenizer, length).encode(examples, "train")


def learned(tokenizer, encoded, row=0):
    return tokenizer.decode([t for t in encoded.dataset[row]["labels"] if t != -100])


def test_every_format_gives_the_same_examples(tmp_path):
    jsonl, array, table, parquet = (
        tmp_path / f"d.{end}" for end in ("jsonl", "json", "csv", "parquet")
    )
    jsonl.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    array.write_text(json.dumps(ROWS))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    for path in (jsonl, array, table, parquet):
        got = [(e.prompt, e.response) for e in read_examples(str(path), field="train_data_path")]
        assert got == [(r["prompt"], r["response"]) for r in ROWS], path.suffix


def test_the_ids_and_labels_are_those_of_trl(tokenizer, tiny, tmp_path):
    """TRL's own preparation of the same rows as prompt and completion, conversational."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    theirs = SFTTrainer(
        str(tiny),
        SFTConfig(
            output_dir=str(tmp_path), max_length=512, bf16=False, use_cpu=True, report_to="none"
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": r["prompt"]}],
                    "completion": [{"role": "assistant", "content": r["response"]}],
                }
                for r in ROWS
            ]
        ),
    ).train_dataset
    ours = encode(
        tokenizer, [Example(prompt=r["prompt"], response=r["response"]) for r in ROWS]
    ).dataset
    assert [r["input_ids"] for r in ours] == [r["input_ids"] for r in theirs]
    assert [r["labels"] for r in ours] == [r["labels"] for r in theirs]


def test_only_the_answer_is_learned(tokenizer):
    encoded = encode(tokenizer, [Example(prompt="12+3=", response="\\boxed{15}")])
    assert learned(tokenizer, encoded) == "\\boxed{15}<|im_end|>\n"


def test_every_turn_of_the_assistant_is_learned_with_marks_and_without(tokenizer, tiny):
    from transformers import AutoTokenizer

    example = Example(messages=tuple(CHAT))
    assert learned(tokenizer, encode(tokenizer, [example])) == "Hello!<|im_end|>See you.<|im_end|>"
    plain = AutoTokenizer.from_pretrained(tiny)
    plain.chat_template = tokenizer.chat_template.replace("{%- generation -%}", "").replace(
        "{%- endgeneration -%}", ""
    )
    assert learned(plain, encode(plain, [example])) == "Hello!<|im_end|>\nSee you.<|im_end|>\n"


def test_without_a_chat_template_pairs_are_plain_text_and_conversations_are_refused(
    tokenizer, tiny
):
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(tiny)
    bare.chat_template = None
    encoded = encode(bare, [Example(prompt="12+3=", response="15")])
    assert bare.decode(encoded.dataset[0]["input_ids"]) == "12+3=15<|im_end|>"
    assert learned(bare, encoded) == "15<|im_end|>"
    with pytest.raises(TrainingFailure, match="no chat template"):
        encode(bare, [Example(messages=tuple(CHAT))])


def test_long_rows_are_cut_and_counted(tokenizer):
    rows = [
        Example(prompt="a", response="b" * 100),
        Example(prompt="a" * 100, response="b"),
        Example(prompt="a", response="b"),
    ]
    encoded = encode(tokenizer, rows, length=60)
    assert (encoded.rows, encoded.cut, encoded.dropped) == (3, 2, 1)
    assert max(len(r["input_ids"]) for r in encoded.dataset) == 60


def test_after_memory_ran_out_fewer_answers_are_written_side_by_side():
    from services.gpu_agent.trainers.evaluation import written_together

    assert [written_together(8, halvings) for halvings in (0, 1, 2, 5)] == [16, 4, 2, 1]
    assert written_together(32, 0) == 32


def test_answers_do_not_depend_on_the_batch_they_are_made_in(tokenizer, tiny):
    from transformers import AutoModelForCausalLM

    from services.gpu_agent.trainers.encoding import ExampleEncoder
    from services.gpu_agent.trainers.evaluation import AnswerChecker

    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    examples = [Example(prompt="x" * n, response="yes") for n in (1, 30, 7, 3)]
    prompts = ExampleEncoder(tokenizer, 128).prompts(examples, 4)
    together = AnswerChecker(tokenizer, prompts, 128, 4).answers(model, lambda: None)
    alone = [AnswerChecker(tokenizer, [p], 128, 1).answers(model, lambda: None)[0] for p in prompts]
    assert [a.completion for a in together] == [a.completion for a in alone]
    assert all(a.truncated for a in together)
    assert not any(a.correct for a in together)
