"""`trainyard jobs …`: submit, list, watch and steer jobs."""

from __future__ import annotations

import json
import uuid as uuids
from pathlib import Path
from typing import Annotated, Any

import typer

from trainyard.cli.follow import follow
from trainyard.cli.job_file import JobFileInvalid, parse_overrides, read_job
from trainyard.cli.output import (
    Format,
    OutputOption,
    fail,
    out,
    print_json,
    print_rows,
    user_errors,
)
from trainyard.client import Client
from trainyard.models import Job

app = typer.Typer(no_args_is_help=True, help="Submit, list, watch and steer jobs.")
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's uuid, or its first digits.")
]
EXIT_BY_STATUS = {"COMPLETED": 0, "FAILED": 1, "CANCELLED": 2}
TIMED_OUT = 124
TABLE_METRICS = (
    "loss", "learning_rate", "grad_norm", "tokens_per_second", "eval_loss", "eval_accuracy",
    "reward", "kl_divergence", "reward_margin", "accuracy",
)  # fmt: skip


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="YAML or JSON file with the parameters.")],
    set_: Annotated[
        list[str] | None, typer.Option("-s", "--set", help="Override one: learning_rate=1e-5.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check it, submit nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it has ended.")] = False,
    output: OutputOption = "text",
) -> None:
    """Submit a job from a file."""
    try:
        body = read_job(file, set_ or [])
    except JobFileInvalid as error:
        raise fail(str(error)) from None
    with user_errors(output), Client() as client:
        if dry_run:
            print_json(client.jobs.validate(body))
            return
        job = client.jobs.submit(body, idempotency_key=str(uuids.uuid4()))
        if output == "json" and not wait:
            print_json(job)
            return
        if output == "text":
            out.print(f"{job.uuid} {job.status}")
        if wait:
            ended = follow(client, job.uuid)
            _finish(ended, output)


@app.command("ls")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only this status.")] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="For example: config.learning_rate>1e-5")
    ] = None,
    q: Annotated[str | None, typer.Option("-q", help="Part of the name.")] = None,
    limit: Annotated[int, typer.Option(help="Rows, at most 500.")] = 50,
    output: OutputOption = "text",
) -> None:
    """List jobs, newest first."""
    with user_errors(output), Client() as client:
        page = client.jobs.list(status=status, filter=filter_, q=q, limit=limit)
    if output == "json":
        print_json(page)
        return
    rows = [
        (j.uuid, j.name, j.algorithm, j.status, _step(j), j.host or "", j.reason or "")
        for j in page.items
    ]
    print_rows(("UUID", "NAME", "ALGORITHM", "STATUS", "STEP", "HOST", "REASON"), rows)


@app.command()
def show(job: JobArgument, output: OutputOption = "text") -> None:
    """Show one job with its metrics, progress and reason."""
    with user_errors(output), Client() as client:
        found = _find(client, job)
    if output == "json":
        print_json(found)
        return
    for name, value in found.model_dump(mode="json").items():
        if value not in (None, [], {}):
            text = (
                json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
            )
            out.print(f"{name}: {text}", markup=False)


@app.command()
def logs(
    job: JobArgument,
    follow_: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends.")] = False,
    level: Annotated[str | None, typer.Option(help="INFO, WARNING or ERROR and above.")] = None,
    q: Annotated[str | None, typer.Option("-q", help="Only lines with this text.")] = None,
    limit: Annotated[int, typer.Option(help="The newest lines.")] = 100,
) -> None:
    """Print the log of a job."""
    with user_errors(), Client() as client:
        found = _find(client, job)
        if follow_:
            follow(client, found.uuid, logs=True, level=level)
            return
        page = client.jobs.logs(found.uuid, limit=limit, level=level, q=q)
        for line in page["items"]:
            out.print(f"[{line['level']}] {line['message']}", markup=False)


@app.command()
def metrics(
    job: JobArgument,
    names: Annotated[
        str | None, typer.Option(help="Comma-separated, such as loss,eval_loss.")
    ] = None,
    last: Annotated[int, typer.Option(help="Rows of the table.")] = 20,
    points: Annotated[int, typer.Option(help="At most so many per series, with -o json.")] = 2000,
    output: OutputOption = "text",
) -> None:
    """Print the metrics of a job by step: the newest rows as a table, everything with -o json."""
    chosen = names.split(",") if names else None
    with user_errors(output), Client() as client:
        found = _find(client, job)
        if output == "json":
            print_json(client.jobs.metrics(found.uuid, chosen, points=points))
            return
        step = (found.progress.step if found.progress else 0) - last
        wanted = chosen or [n for n in TABLE_METRICS if n in (found.latest_metrics or {})]
        data = client.jobs.metrics(found.uuid, wanted, points=10_000, **{"from": max(step, 0)})
    columns = list(data.series)
    rows = [
        (f"{x:g}" if x is not None else "", *(_number(data.series[c][i]) for c in columns))
        for i, x in list(enumerate(data.x))[-last:]
    ]
    print_rows(("step", *columns), rows)


@app.command()
def checkpoints(job: JobArgument, output: OutputOption = "text") -> None:
    """List the complete checkpoints of a job."""
    with user_errors(output), Client() as client:
        found = client.jobs.checkpoints(_find(client, job).uuid)
    if output == "json":
        print_json(found)
        return
    rows = [
        (c.step, c.kind, "best" if c.best else "", "last" if c.last else "", c.size_bytes, c.path)
        for c in found
    ]
    print_rows(("STEP", "KIND", "BEST", "LAST", "BYTES", "PATH"), rows)


@app.command()
def download(
    job: JobArgument,
    step: Annotated[int, typer.Argument(help="Step of the checkpoint.")],
    target: Annotated[Path | None, typer.Option("--to", help="Archive to write.")] = None,
) -> None:
    """Save a checkpoint as a tar archive."""
    with user_errors(), Client() as client:
        found = _find(client, job)
        path = target or Path(f"{found.uuid}-checkpoint-{step}.tar")
        size = client.jobs.download(found.uuid, step, path)
    out.print(f"{path} ({size} bytes)", markup=False)


@app.command()
def wait(
    job: JobArgument,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds; exit status 124 after them.")
    ] = None,
    output: OutputOption = "text",
) -> None:
    """Wait for the end: exit status 0 completed, 1 failed, 2 cancelled, 124 timed out."""
    with user_errors(output), Client() as client:
        found = _find(client, job)
        try:
            ended = client.jobs.wait(found.uuid, timeout)
        except TimeoutError as error:
            raise fail(str(error), TIMED_OUT) from None
    _finish(ended, output)


@app.command()
def clone(
    job: JobArgument,
    set_: Annotated[
        list[str] | None, typer.Option("-s", "--set", help="Override one value.")
    ] = None,
    submit_: Annotated[bool, typer.Option("--submit", help="Submit it at once.")] = False,
) -> None:
    """Print the body of a job for a new one, or submit it with changes."""
    with user_errors("text"), Client() as client:
        body = client.jobs.clone(_find(client, job).uuid)
        try:
            body |= parse_overrides(set_ or [])
        except JobFileInvalid as error:
            raise fail(str(error)) from None
        print_json(client.jobs.submit(body) if submit_ else body)


def _steer(verb: str, past: str) -> None:
    def command(job: JobArgument, output: OutputOption = "text") -> None:
        with user_errors(output), Client() as client:
            found = client.jobs.act(_find(client, job).uuid, verb)
        if output == "json":
            print_json(found)
        else:
            out.print(f"{found.uuid} {past}: {found.status}")

    command.__doc__ = f"{verb.capitalize()} a job."
    app.command(verb)(command)


for _verb, _past in (
    ("cancel", "cancel requested"),
    ("pause", "pause requested"),
    ("resume", "resume requested"),
    ("retry", "retry requested"),
):
    _steer(_verb, _past)


@app.command()
def delete(job: JobArgument) -> None:
    """Delete an ended job, its history and its files."""
    with user_errors(), Client() as client:
        found = _find(client, job)
        client.jobs.delete(found.uuid)
    out.print(f"{found.uuid} deleted")


def _find(client: Client, text: str) -> Job:
    """Return the job whose uuid is `text` or begins or ends with it."""
    try:
        return client.jobs.get(str(uuids.UUID(text)))
    except ValueError:
        pass
    page = client.jobs.list(limit=500)
    hits = [
        j for j in page.items if j.uuid.startswith(text) or j.uuid.endswith(text) or j.name == text
    ]
    if len(hits) == 1:
        return hits[0]
    many = f"fits {len(hits)} jobs" if hits else "fits no job"
    raise fail(f"{text!r} {many}; give the whole uuid from `trainyard jobs ls`.")


def _finish(job: Job, output: Format) -> None:
    if output == "json":
        print_json(job)
    else:
        tail = f": {job.message or job.reason}" if job.reason or job.message else ""
        out.print(f"{job.uuid} {job.status}{tail}", markup=False)
        if job.hint:
            out.print(job.hint, markup=False)
    code = EXIT_BY_STATUS.get(job.status, 1)
    if code:
        raise typer.Exit(code)


def _step(job: Job) -> str:
    if job.progress is None:
        return ""
    return f"{job.progress.step}/{job.progress.total_steps or '?'}"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}"
