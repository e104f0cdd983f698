"""`trainyard reward …`: try a reward before a run, and configure the providers of judges."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.rewards.scores import ItemResult, ScoreResponse
from trainyard.cli.job_file import JobFileInvalid, read_job
from trainyard.cli.output import OutputOption, fail, out, print_json, print_rows, user_errors
from trainyard.reward_client import RewardClient

app = typer.Typer(no_args_is_help=True, help="Try rewards, configure the providers of judges.")
providers = typer.Typer(no_args_is_help=True, help="Providers of judges.")
app.add_typer(providers, name="providers")
KEY_VARIABLE = "TRAINYARD_PROVIDER_KEY"


@app.command()
def serve() -> None:
    """Run the reward service alone (production: one container a service)."""
    argv = [sys.executable, "-P", "-m", "services.reward"]
    os.execv(argv[0], argv)


@app.command("try")
def try_reward(
    config: Annotated[
        Path, typer.Option(help="The reward, as YAML or JSON: `type: math_verify` and so on.")
    ],
    completion: Annotated[
        list[str], typer.Option(help="What a model wrote; several for self_play.")
    ],
    prompt: Annotated[str, typer.Option(help="What it was asked.")] = "",
    solution: Annotated[str | None, typer.Option(help="The reference answer.")] = None,
    output: OutputOption = "text",
) -> None:
    """Score completions and show how: what was extracted, how it compared, each component, and what it cost."""
    try:
        reward = read_job(config)
    except JobFileInvalid as error:
        raise fail(str(error)) from None
    items = [
        {
            "id": str(n),
            "prompt": prompt,
            "completion": text,
            "solution": solution,
            "group_id": "try",
        }
        for n, text in enumerate(completion)
    ]
    with user_errors(output), RewardClient() as client:
        answer = client.score(reward, items)
    if output == "json":
        print_json(answer)
    else:
        _show(answer)
    if any(result.reward is None for result in answer.results):
        raise typer.Exit(1)


def _show(answer: ScoreResponse) -> None:
    for result in answer.results:
        for name, value in _lines(result):
            out.print(f"{name:<12} {value}", markup=False, highlight=False)
        out.print()
    summary = answer.summary
    out.print(
        f"{summary.ok} scored, {summary.error} failed, {summary.skipped} not judgeable, cost {summary.cost:.6g} "
        f"{summary.currency}, {summary.duration_ms:.1f} ms, version {answer.reward_version[:19]}",
        markup=False, highlight=False,
    )  # fmt: skip


def _lines(result: ItemResult) -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = [("completion", result.id)]
    lines.append(("reward", "none" if result.reward is None else f"{result.reward:g}"))
    if result.error is not None:
        again = "trying again may help" if result.error.retryable else "trying again does not help"
        lines.append(("why none", f"{result.error.code}: {result.error.message} ({again})"))
    else:
        lines.append(("why", result.reason))
    if result.extracted is not None:
        lines.append(("extracted", result.extracted))
    lines += [
        (f"  {name}", "none" if value is None else f"{value:g}")
        for name, value in result.components.items()
    ]
    if result.provider is not None:
        how = (
            "from the cache"
            if result.cached
            else f"{result.attempts} call(s), cost {result.cost:.6g}"
        )
        fallback = ", by the fallback" if result.fallback else ""
        lines.append(("provider", f"{result.provider}: {how}{fallback}"))
    return lines


@providers.command("ls")
def list_providers(output: OutputOption = "text") -> None:
    """List providers, how they do, and the end of each key."""
    with user_errors(output), RewardClient() as client:
        found = client.call("GET", "/v1/providers")["items"]
    if output == "json":
        out.print_json(json.dumps(found))
        return
    rows = [
        (p["name"], p["api_base"], f"…{p['key_last4']}" if p["has_key"] else "no key",
         p.get("state", {}).get("breaker", "-"), p.get("state", {}).get("calls", 0),
         p.get("state", {}).get("errors", 0), f"{p.get('state', {}).get('cost', 0.0):.4g} {p['currency']}")
        for p in found
    ]  # fmt: skip
    print_rows(("NAME", "ADDRESS", "KEY", "BREAKER", "CALLS", "ERRORS", "COST"), rows)


@providers.command("set")
def set_provider(
    name: Annotated[str, typer.Argument(help="Name that rewards use.")],
    api_base: Annotated[
        str, typer.Option(help="Such as https://dashscope.aliyuncs.com/compatible-mode/v1")
    ],
    kind: Annotated[
        str, typer.Option(help="dashscope, or openai for any compatible one.")
    ] = "openai",
    rpm: Annotated[
        float | None, typer.Option(help="Requests a minute that the account may make.")
    ] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens a minute.")] = None,
    daily_budget: Annotated[float, typer.Option(help="The most to spend a day.")] = 100.0,
    price: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=INPUT,OUTPUT for a million tokens; * for all models."),
    ] = None,
) -> None:
    """Configure a provider. The key is read from TRAINYARD_PROVIDER_KEY or asked for, never taken as an argument."""
    body: dict[str, Any] = {
        "name": name, "kind": kind, "api_base": api_base, "rpm": rpm, "tpm": tpm, "daily_budget": daily_budget,
        "prices": dict(_price(p) for p in price or []),
    }  # fmt: skip
    key = os.environ.get(KEY_VARIABLE)
    if key is None and sys.stdin.isatty():
        key = typer.prompt("API key (empty: keep the one that is there)", default="", hide_input=True, show_default=False)  # fmt: skip
    if key:
        body["api_key"] = key
    with user_errors(), RewardClient() as client:
        client.call("PUT", f"/v1/providers/{name}", body)
    out.print(f"{name} configured; try it with `trainyard reward providers test {name}`")


@providers.command("test")
def check_provider(
    name: Annotated[str, typer.Argument(help="Provider.")],
    model: Annotated[str, typer.Option(help="Model that judges.")] = "qwen-plus",
    output: OutputOption = "text",
) -> None:
    """Let a provider judge a right answer, and answers that no judge may reward."""
    with user_errors(output), RewardClient() as client:
        found = client.call("POST", f"/v1/providers/{name}/test", {"model": model})
    if output == "json":
        out.print_json(json.dumps(found))
    else:
        for shown in (found["answer"], *found["canaries"]):
            got = shown["error"] or f"{shown['reward']:.2f}"
            out.print(
                f"{got:<22} {shown['completion'] or '(empty)'}", markup=False, highlight=False
            )
        if found["answer"]["error"]:
            out.print(f"{name} does not answer: {found['answer']['message']}", markup=False)
        elif found["canaries_failed"]:
            out.print(f"{found['canaries_failed']} empty answers got half the scale or more: give a stricter rubric, or another model.")  # fmt: skip
    if not found["ok"]:
        raise typer.Exit(1)


@providers.command("rm")
def remove_provider(name: Annotated[str, typer.Argument(help="Provider.")]) -> None:
    """Forget a provider and its key."""
    with user_errors(), RewardClient() as client:
        client.call("DELETE", f"/v1/providers/{name}")
    out.print(f"{name} removed")


def _price(text: str) -> tuple[str, dict[str, float]]:
    model, _, prices = text.partition("=")
    try:
        before, after = (float(p) for p in prices.split(","))
    except ValueError:
        raise fail(
            f"--price {text!r}: write it as MODEL=INPUT,OUTPUT, such as qwen-plus=0.8,2.0."
        ) from None
    return model, {"input": before, "output": after}
