"""Hostile requests by operation of the OpenAPI document; `every` gives what each operation must refuse anyway."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

JSON = {"Content-Type": "application/json"}
HUGE = "9" * 5000


@dataclasses.dataclass(frozen=True)
class Case:
    """One request and the refusal that it must get."""

    name: str
    status: int
    code: str
    """Of the problem, or of one of its errors."""
    field: str | None = None
    body: Any = None
    """Bytes go as they are, anything else as JSON; `{data}` and the like are filled in."""
    query: str = ""
    path: str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


def content(body: Any) -> bytes | None:
    """Return the bytes of a case's body."""
    if body is None or isinstance(body, bytes):
        return body
    return json.dumps(body).encode()


def bad(
    name: str, body: Any, code: str, field: str | None = None, status: int = 422, **more: Any
) -> Case:
    return Case(name, status, code, field, body, **more)


def ask(name: str, query: str, field: str, code: str = "", status: int = 422) -> Case:
    return Case(name, status, code or "invalid", field, query=query)


JOB: dict[str, Any] = {"algorithm": "sft", "model_path": "org/m", "train_data_path": "{data}"}
REWARDED: dict[str, Any] = JOB | {
    "algorithm": "grpo",
    "train_data_path": "datasets/sales_grpo.jsonl",
}


def job(name: str, field: str, code: str, /, **changes: Any) -> Case:
    return bad(name, JOB | changes, code, field)


SUBMIT = [
    bad("nothing", b"", "required", "body"),
    bad("text", "hello", "wrong_type"),
    bad("number", 5, "wrong_type"),
    bad("empty object", {}, "required"),
    bad("no model", {"algorithm": "sft", "train_data_path": "{data}"}, "required", "model_path"),
    job("algorithm list", "algorithm", "", algorithm=["sft"]),
    job("algorithm of another", "algorithm", "", algorithm="rlhf"),
    job("algorithm object", "algorithm", "", algorithm={"a": 1}),
    job("unknown parameter", "learning_rat", "unknown_field", learning_rat=1),
    job("of another algorithm", "clip_ratio", "wrong_algorithm", clip_ratio=0.2),
    job("negative rate", "learning_rate", "out_of_range", learning_rate=-1),
    job("rate as text", "learning_rate", "wrong_type", learning_rate="1e-5"),
    job("rate as list", "learning_rate", "wrong_type", learning_rate=[1e-5]),
    job("zero epochs", "num_epochs", "out_of_range", num_epochs=0),
    job("absurd epochs", "num_epochs", "out_of_range", num_epochs=1e300),
    job("absurd batch", "batch_size", "out_of_range", batch_size=10**12),
    job("absurd steps", "max_steps", "out_of_range", max_steps=2**62),
    job("absurd gpus", "num_gpus", "out_of_range", num_gpus=10**9),
    job("absurd context", "context_length", "out_of_range", context_length=10**15),
    job("negative seed", "seed", "out_of_range", seed=-(10**18)),
    job("priority 101", "priority", "out_of_range", priority=101),
    job("retries", "max_retries", "out_of_range", max_retries=10**6),
    job("tag bomb", "tags", "too_long", tags=[f"t{i}" for i in range(5000)]),
    job("tags doubled", "tags", "duplicate", tags=["a", "a"]),
    job("tags text", "tags", "wrong_type", tags="a,b"),
    job("long name", "name", "too_long", name="n" * 201),
    job("long description", "description", "too_long", description="d" * 4001),
    job("name with colours", "name", "invalid_characters", name="\x1b[31mred"),
    job("name turned round", "name", "invalid_characters", name="a\u202eb"),
    job("depends on nothing", "depends_on", "job_not_found", depends_on=["{missing}"]),
    job("depends on words", "depends_on.0", "invalid_uuid", depends_on=["x"]),
    job("depends on many", "depends_on", "", depends_on=["x"] * 101),
    job("early stopping of nothing", "eval_data_path", "needs", early_stopping_patience=3),
    job("lora without lora", "lora_rank", "", lora_rank=4),
    job("device for data", "train_data_path", "", train_data_path="/dev/zero"),
    job("system file for data", "train_data_path", "", train_data_path="/etc/passwd"),
    job("data of a process", "train_data_path", "", train_data_path="/proc/self/environ"),
    job("climbing data", "train_data_path", "", train_data_path="../" * 40 + "etc/shadow"),
    job("blank data", "train_data_path", "", train_data_path=" "),
    job("long data", "train_data_path", "too_long", train_data_path="/" + "a" * 2000),
    job("long part of a path", "train_data_path", "", train_data_path="/" + "a" * 900),
    job("data by url", "train_data_path", "", train_data_path="file:///etc/passwd"),
    job("model is a device", "model_path", "", model_path="/dev/null"),
    job("model is /etc", "model_path", "", model_path="/etc"),
    job("climbing model", "model_path", "", model_path="../" * 40 + "etc"),
    job("model of no job", "model_path", "", model_path="job:{missing}"),
    job("model of words", "model_path", "", model_path="job:x@y"),
    job("model at no step", "model_path", "", model_path="job:{ended}@999"),
    job("model at -1", "model_path", "", model_path="job:{ended}@-1"),
    job("secrets text", "secrets", "wrong_type", secrets="x"),
    job("secret lower", "secrets", "", secrets={"lower": "v"}),
    job("secret loader", "secrets", "", secrets={"LD_PRELOAD": "/evil.so"}),
    job("secret python", "secrets", "", secrets={"PYTHONPATH": "/evil"}),
    job("secret number", "secrets.HF_TOKEN", "wrong_type", secrets={"HF_TOKEN": 5}),
    job("secret too long", "secrets.HF_TOKEN", "too_long", secrets={"HF_TOKEN": "x" * 20_000}),
    job("many secrets", "secrets", "", secrets={f"S{i}": "v" for i in range(500)}),
    job("ssh option for host", "ssh_host", "", run_mode="ssh", ssh_host="-oProxyCommand=x", ssh_username="u", ssh_password="p"),
    job("ssh shell for host", "ssh_host", "", run_mode="ssh", ssh_host="x;rm -rf /", ssh_username="u", ssh_password="p"),
    job("ssh line break", "ssh_host", "", run_mode="ssh", ssh_host="a\r\nb", ssh_username="u", ssh_password="p"),
    job("ssh user option", "ssh_username", "", run_mode="ssh", ssh_host="h", ssh_username="-l root", ssh_password="p"),
    job("ssh port", "ssh_port", "out_of_range", run_mode="ssh", ssh_host="h", ssh_username="u", ssh_password="p", ssh_port=99999),
    bad("rewards bomb", REWARDED | {"rewards": [{"name": f"r{i}", "reward_fn_type": "math_verify"} for i in range(500)]}, "", "rewards"),
    bad("reward file url", REWARDED | {"reward_model_type": "api", "reward_model_api_base": "file:///etc/passwd"}, "", "reward_model_api_base"),
    bad("reward with a user", REWARDED | {"reward_model_type": "api", "reward_model_api_base": "https://u:p@h/v1"}, "", "reward_model_api_base"),
    bad("reward weight", REWARDED | {"rewards": [{"name": "a", "weight": 1e300, "reward_fn_type": "math_verify"}]}, "", None),
    bad("one rollout", REWARDED | {"reward_fn_type": "math_verify", "rollout_n": 1}, "", "rollout_n"),
    bad("absurd rollouts", REWARDED | {"reward_fn_type": "math_verify", "rollout_n": 10**9}, "out_of_range", "rollout_n"),
    bad("grpo on sft data", JOB | {"algorithm": "grpo", "reward_fn_type": "math_verify"}, "missing_column", "train_data_path"),
    bad("dpo on sft data", JOB | {"algorithm": "dpo"}, "missing_column", "train_data_path"),
    bad("dpo negative beta", JOB | {"algorithm": "dpo", "beta": -1}, "out_of_range", "beta"),
]  # fmt: skip

PATCHES = [
    bad("name empty", {"name": ""}, "too_short", "name"),
    bad("name blank", {"name": "  "}, "blank", "name"),
    bad("name number", {"name": 5}, "wrong_type", "name"),
    bad("name long", {"name": "n" * 201}, "too_long", "name"),
    bad("name with a break", {"name": "a\nb"}, "invalid_characters", "name"),
    bad("name of half a character", b'{"name":"\\ud800"}', "invalid_encoding", status=400),
    bad("tags number", {"tags": 5}, "wrong_type", "tags"),
    bad("tags doubled", {"tags": ["x", "x"]}, "duplicate", "tags"),
    bad("tag empty", {"tags": [""]}, "too_short", "tags.0"),
    bad("tags many", {"tags": [str(i) for i in range(100)]}, "too_long", "tags"),
    bad("priority high", {"priority": 101}, "out_of_range", "priority"),
    bad("priority 2**70", {"priority": 2**70}, "out_of_range", "priority"),
    bad("priority true", {"priority": True}, "wrong_type", "priority"),
    bad("status", {"status": "COMPLETED"}, "unknown_field", "status"),
    bad("config", {"config": {"learning_rate": 1}}, "unknown_field", "config"),
    bad("field with colours", {"\x1b[31m": 1}, "unknown_field"),
    bad("list", [], "wrong_type", "body"),
    bad("nothing", b"", "required", "body"),
    bad("priority of an ended job", {"priority": 5}, "not_waiting", status=409),
]
SECRET_VALUES = [
    bad("number", {"value": 5}, "wrong_type", "value"),
    bad("empty", {"value": ""}, "too_short", "value"),
    bad("long", {"value": "v" * 16_385}, "too_long", "value"),
    bad("missing", {}, "required", "value"),
    bad("more", {"value": "v", "other": "v"}, "unknown_field", "other"),
    bad("lower name", {"value": "v"}, "invalid_name", "name", path="/api/v1/jobs/{uuid}/secrets/lower"),
    bad("loader", {"value": "v"}, "reserved_name", "name", path="/api/v1/jobs/{uuid}/secrets/LD_PRELOAD"),
    bad("path", {"value": "v"}, "reserved_name", "name", path="/api/v1/jobs/{uuid}/secrets/PATH"),
    bad("own settings", {"value": "v"}, "reserved_name", "name", path="/api/v1/jobs/{uuid}/secrets/TRAINYARD_API_TOKEN"),
    bad("climbing name", {"value": "v"}, "not_found", path="/api/v1/jobs/{uuid}/secrets/..%2f..%2fkeys", status=404),
]  # fmt: skip
KEY = "U" + "A" * 55
JOINS = [
    bad("wrong code", {"code": "AAAAA-AAAAA-AAAAA-AAAAA", "public_key": KEY}, "join_code_invalid", status=403),
    bad("short code", {"code": "A", "public_key": KEY}, "too_short", "code"),
    bad("huge code", {"code": "A" * 100_000, "public_key": KEY}, "too_long", "code"),
    bad("number code", {"code": 12345678, "public_key": KEY}, "wrong_type", "code"),
    bad("code of symbols", {"code": "' OR 1=1 --", "public_key": KEY}, "join_code_invalid", status=403),
    bad("no key", {"code": "AAAAA-AAAAA"}, "required", "public_key"),
    bad("key of a service", {"code": "AAAAA-AAAAA", "public_key": "A" * 56}, "not_allowed", "public_key"),
    bad("seed for key", {"code": "AAAAA-AAAAA", "public_key": "SU" + "A" * 56}, "not_allowed", "public_key"),
    bad("key with a break", {"code": "AAAAA-AAAAA", "public_key": KEY + "\n"}, "not_allowed", "public_key"),
    bad("config for key", {"code": "AAAAA-AAAAA", "public_key": 'U"} permissions: {publish: ">"}'}, "not_allowed", "public_key"),
    bad("label climbs", {"code": "AAAAA-AAAAA", "public_key": KEY, "label": "../../x"}, "invalid_hostname", "label"),
    bad("label option", {"code": "AAAAA-AAAAA", "public_key": KEY, "label": "-oX"}, "invalid_hostname", "label"),
    bad("label long", {"code": "AAAAA-AAAAA", "public_key": KEY, "label": "a" * 300}, "too_long", "label"),
    bad("label empty", {"code": "AAAAA-AAAAA", "public_key": KEY, "label": ""}, "too_short", "label"),
    bad("host id of its own", {"code": "AAAAA-AAAAA", "public_key": KEY, "host_id": "local"}, "unknown_field", "host_id"),
]  # fmt: skip
DRAINS = [
    bad("text", {"stop_jobs": "yes"}, "wrong_type", "stop_jobs"),
    bad("number", {"stop_jobs": 1}, "wrong_type", "stop_jobs"),
    bad("unknown", {"stop_job": True}, "unknown_field", "stop_job"),
    bad("list", [1], "wrong_type", "body"),
]
LISTS = [
    ask("limit 0", "limit=0", "limit", "out_of_range"),
    ask("limit huge", f"limit={HUGE}", "limit"),
    ask("limit float", "limit=1.5", "limit", "wrong_type"),
    ask("limit twice", "limit=1&limit=2", "limit", "duplicate"),
    ask("status", "status=RUNNING,DONE", "status", "not_allowed"),
    ask("status turned round", "status=%E2%80%AE", "status", "not_allowed"),
    ask("algorithm", "algorithm=x'--", "algorithm", "not_allowed"),
    ask("sort", "sort=(select 1)", "sort", "not_allowed"),
    ask("long q", "q=" + "q" * 201, "q", "too_long"),
    ask("forged cursor", "after=AAAA", "after", "cursor_invalid"),
    ask("cursor that is none", "after=%F0%9F%9A%82", "after", "cursor_invalid"),
    ask("filter field", "filter=reasn=disconnected", "filter", "filter_invalid"),
    ask("filter reason", "filter=reason=because", "filter", "filter_invalid"),
    ask("filter order of reasons", "filter=reason>disconnected", "filter", "filter_invalid"),
    ask("filter secret", "filter=config.ssh_password:a", "filter", "filter_invalid"),
    ask("filter quotes", "filter=name=%22", "filter", "filter_invalid"),
    ask("filter deep", "filter=" + "(" * 400, "filter", "filter_invalid"),
    ask("filter number", "filter=attempt>1e999", "filter", "filter_invalid"),
    ask("filter time", "filter=created_at>0000-00-00", "filter", "filter_invalid"),
    ask("filter colours", "filter=%1b[31m=1", "filter", "filter_invalid"),
    ask("mistyped parameter", "staus=RUNNING", "staus", "unknown_field"),
]
METRICS = [
    ask("no names", "names=,,", "names"),
    ask("many names", "names=" + ",".join(f"n{i}" for i in range(1001)), "names"),
    ask("x", "x=reward", "x", "not_allowed"),
    ask("from nan", "from=nan", "from", "not_finite"),
    ask("to infinity", "to=1e999", "to", "not_finite"),
    ask("from text", "from=yesterday", "from", "wrong_type"),
    ask("from above to", "from=5&to=1", "from"),
    ask("no points", "points=0", "points", "out_of_range"),
    ask("many points", "points=10001", "points", "out_of_range"),
    ask("huge points", f"points={HUGE}", "points"),
]
LOGS = [
    ask("limit", "limit=5001", "limit", "out_of_range"),
    ask("after negative", "after=-1", "after", "out_of_range"),
    ask("after huge", "after=99999999999999999999", "after", "out_of_range"),
    ask("before text", "before=x", "before", "wrong_type"),
    ask("level", "level=FATAL", "level", "not_allowed"),
    ask("long q", "q=" + "q" * 501, "q", "too_long"),
]
CASES: dict[str, list[Case]] = {
    "GET /api/v1/alerts": [
        ask("limit", "limit=501", "limit", "out_of_range"),
        ask("long job", "job=" + "j" * 129, "job", "too_long"),
    ],
    "GET /api/v1/rewards/usage": [
        ask("by", "by=mood", "by", "not_allowed"),
        ask("no day", "from=yesterday", "from"),
        ask("no day of any month", "to=2026-13-40", "to", "invalid_day"),
        ask("turned round", "from=2026-02-01&to=2026-01-01", "from", ""),
        ask("long provider", "provider=" + "p" * 129, "provider", "too_long"),
    ],
    "GET /api/v1/hosts/": [ask("filter", "online=true", "online", "unknown_field")],
    "POST /api/v1/hosts/join": JOINS,
    "POST /api/v1/hosts/join-codes": [bad("lasting", {"hours": 10**9}, "unknown_field", "hours")],
    "DELETE /api/v1/hosts/{host}": [
        Case("that is online", 409, "host_online"),
        Case("nobody", 404, "not_found", path="/api/v1/hosts/nobody"),
        Case("climbing", 404, "not_found", path="/api/v1/hosts/..%2f..%2fkeys"),
    ],
    "GET /api/v1/hosts/{host}": [
        Case("nobody", 404, "not_found", path="/api/v1/hosts/" + "x" * 5000),
        Case("colours", 404, "not_found", path="/api/v1/hosts/%1b[31m"),
    ],
    "POST /api/v1/hosts/{host}/drain": DRAINS,
    "POST /api/v1/hosts/{host}/undrain": [
        bad("with a body", {"stop_jobs": True}, "unknown_field", "stop_jobs"),
        Case("nobody", 404, "not_found", path="/api/v1/hosts/nobody/undrain"),
    ],
    "GET /api/v1/jobs/": LISTS,
    "POST /api/v1/jobs/": [
        *SUBMIT,
        bad("empty key", JOB, "invalid", "Idempotency-Key", headers={"Idempotency-Key": ""}),
        bad("long key", JOB, "invalid", "Idempotency-Key", headers={"Idempotency-Key": "k" * 300}),
    ],
    "POST /api/v1/jobs:validate": SUBMIT,
    "GET /api/v1/jobs/{uuid}": [
        Case("injection", 404, "job_not_found", path="/api/v1/jobs/'%20OR%201=1%20--"),
        Case("climbing", 404, "not_found", path="/api/v1/jobs/..%2f..%2fapi%2fmain.db"),
        Case("colours", 404, "job_not_found", path="/api/v1/jobs/%1b[31m"),
        Case("broken text", 404, "job_not_found", path="/api/v1/jobs/%ff%fe"),
    ],
    "PATCH /api/v1/jobs/{uuid}": PATCHES,
    "DELETE /api/v1/jobs/{uuid}": [
        Case("that waits", 409, "invalid_transition", path="/api/v1/jobs/{waiting}"),
        bad("with a body", {"force": True}, "unknown_field", "force"),
    ],
    "POST /api/v1/jobs/{uuid}/cancel": [
        Case("that has ended", 409, "invalid_transition"),
        bad("with a body", {"force": True}, "unknown_field", "force"),
    ],
    "POST /api/v1/jobs/{uuid}/pause": [Case("that has ended", 409, "invalid_transition")],
    "POST /api/v1/jobs/{uuid}/resume": [
        Case("that has ended", 409, "invalid_transition"),
        Case("that waits", 409, "invalid_transition", path="/api/v1/jobs/{waiting}/resume"),
    ],
    "POST /api/v1/jobs/{uuid}/retry": [
        Case("that succeeded", 409, "invalid_transition"),
        Case("that waits", 409, "invalid_transition", path="/api/v1/jobs/{waiting}/retry"),
    ],
    "POST /api/v1/jobs/{uuid}/declare-lost": [Case("that has ended", 409, "invalid_transition")],
    "POST /api/v1/jobs/{uuid}/clone": [bad("with changes", {"seed": 1}, "unknown_field", "seed")],
    "GET /api/v1/jobs/{uuid}/events": [
        ask("after", "after=-1", "after", "out_of_range"),
        ask("after huge", f"after={2**40}", "after", "out_of_range"),
        ask("limit", "limit=1001", "limit", "out_of_range"),
    ],
    "GET /api/v1/jobs/{uuid}/metrics": METRICS,
    "GET /api/v1/jobs/{uuid}/logs": LOGS,
    "GET /api/v1/jobs/{uuid}/logs/download": [ask("level", "level=x", "level", "not_allowed")],
    "GET /api/v1/jobs/{uuid}/samples": [
        ask("step", "step=nan", "step", "not_finite"),
        ask("sort", "sort=text", "sort", "not_allowed"),
        ask("limit", "limit=501", "limit", "out_of_range"),
        ask("after", "after=-1", "after", "out_of_range"),
        ask("prompt too long", f"prompt={'p' * 1001}", "prompt", "too_long"),
    ],
    "GET /api/v1/jobs/{uuid}/system": [
        ask("from", "from=inf", "from", "not_finite"),
        ask("points", "points=1", "points", "out_of_range"),
        ask("from above to", "from=5&to=1", "from"),
    ],
    "GET /api/v1/jobs/{uuid}/checkpoints": [ask("limit", "limit=1", "limit", "unknown_field")],
    "GET /api/v1/jobs/{uuid}/checkpoints/{step}/download": [
        Case("no such step", 404, "checkpoint_not_found", path="/api/v1/jobs/{uuid}/checkpoints/9999/download"),
        Case("negative", 422, "out_of_range", "step", path="/api/v1/jobs/{uuid}/checkpoints/-1/download"),
        Case("huge", 422, "out_of_range", "step", path="/api/v1/jobs/{uuid}/checkpoints/99999999999/download"),
        Case("text", 422, "wrong_type", "step", path="/api/v1/jobs/{uuid}/checkpoints/best/download"),
        Case("climbing", 404, "not_found", path="/api/v1/jobs/{uuid}/checkpoints/..%2f..%2fkeys/download"),
        Case("of a job without", 404, "checkpoint_not_found", path="/api/v1/jobs/{waiting}/checkpoints/0/download"),
    ],
    "GET /api/v1/jobs/{uuid}/secrets": [ask("values", "reveal=true", "reveal", "unknown_field")],
    "PUT /api/v1/jobs/{uuid}/secrets/{name}": SECRET_VALUES,
    "DELETE /api/v1/jobs/{uuid}/secrets/{name}": [
        Case("that is not there", 404, "not_found"),
        Case("with colours", 404, "not_found", path="/api/v1/jobs/{uuid}/secrets/%1b[31m"),
    ],
    "GET /livez": [], "GET /readyz": [], "GET /metrics": [],
}  # fmt: skip

BODIES = {
    "POST /api/v1/jobs/": b'{"name":%s}',
    "POST /api/v1/jobs:validate": b'{"name":%s}',
    "PATCH /api/v1/jobs/{uuid}": b'{"name":%s}',
    "PUT /api/v1/jobs/{uuid}/secrets/{name}": b'{"value":%s}',
    "POST /api/v1/hosts/join": b'{"code":%s}',
    "POST /api/v1/hosts/{host}/drain": b'{"stop_jobs":%s}',
}
"""Operations that take a body, and one with room for a hostile value."""


def every(operation: str) -> Iterator[Case]:
    """Yield what this operation refuses like every other."""
    method, template = operation.split()
    yield Case("foreign Host", 400, "host_not_allowed", headers={"Host": "evil.example"})
    yield Case("foreign Host with our name", 400, "host_not_allowed", headers={"Host": "127.0.0.1.evil.example"})  # fmt: skip
    yield Case("NUL in the query", 422, "invalid_characters", query="a=%00")
    if method != "GET":
        yield Case("foreign Origin", 403, "origin_not_allowed", headers={"Origin": "https://evil.example"})  # fmt: skip
        yield Case("no Origin at all", 403, "origin_not_allowed", headers={"Origin": "null"})
        yield Case("from another site", 403, "origin_not_allowed", headers={"Sec-Fetch-Site": "cross-site"})  # fmt: skip
    if template.startswith("/api/"):
        yield Case("unknown parameter", 422, "unknown_field", "__proto__", query="__proto__=1", body={} if operation in BODIES else None)  # fmt: skip
    if "{uuid}" in template:
        for key in ("0", "not-a-uuid", "%F0%9F%9A%82", "x" * 3000, "00000000-0000-7000-8000-000000000000"):  # fmt: skip
            path = template.replace("{uuid}", key)
            body = json.loads(BODIES[operation] % b'"abcdefgh"') if operation in BODIES else None
            yield Case(f"job {key[:12]}", 404, "job_not_found", path=path, body=body)
    if operation in BODIES:
        yield from _bodies(BODIES[operation])


def _bodies(frame: bytes) -> Iterator[Case]:
    yield bad("NaN", frame % b"NaN", "not_finite")
    yield bad("1e999", frame % b"1e999", "not_finite")
    yield bad("5,000 digits", frame % HUGE.encode(), "out_of_range")
    yield bad("doubled key", frame[:-1] % b"1" + b"," + frame[1:] % b"2", "duplicate_key", status=400)  # fmt: skip
    yield bad("lone surrogate", frame % b'"\\udfff"', "invalid_encoding", status=400)
    yield bad("NUL", frame % b'"a\\u0000"', "invalid_characters")
    yield bad("invalid UTF-8", frame % b'"\xc3\x28"', "invalid_encoding", status=400)
    yield bad("UTF-16", (frame % b"1").decode().encode("utf-16"), "invalid_encoding", status=400)
    yield bad("deep", frame % (b"[" * 5000 + b"]" * 5000), "json_too_deep", status=400)
    yield bad("cut off", frame[:5], "json_invalid", status=400)
    yield bad("a comment", b"/* */" + frame % b"1", "json_invalid", status=400)
    yield bad("text/plain", frame % b"1", "content_type", status=415, headers={"Content-Type": "text/plain"})  # fmt: skip
    yield bad("a form", b"a=1", "content_type", status=415, headers={"Content-Type": "application/x-www-form-urlencoded"})  # fmt: skip
    yield bad("gzip", b"\x1f\x8b\x08", "encoding_unsupported", status=415, headers={"Content-Encoding": "gzip"})  # fmt: skip
    yield bad("2 MiB", frame % (b'"' + b"x" * (2 << 20) + b'"'), "body_too_large", status=413)
