"""`trainyard hosts …`: list and drain hosts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trainyard.cli.output import OutputOption, fail, out, print_json, print_rows, user_errors
from trainyard.client import Client

app = typer.Typer(no_args_is_help=True, help="List hosts, drain them, let new ones join.")
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="Host id or label.")]


@app.command("ls")
def list_hosts(output: OutputOption = "text") -> None:
    """List hosts with their GPUs and what runs there."""
    with user_errors(output), Client() as client:
        hosts = client.hosts.list()
    if output == "json":
        print_json(hosts)
        return
    rows = []
    for host in hosts:
        data: dict[str, Any] = host.model_dump(mode="json")
        gpus = data.get("gpus") or []
        state = "online" if host.online else "offline"
        rows.append(
            (host.id, host.label, f"{state}, drained" if host.drained else state, len(gpus),
             sum(1 for g in gpus if not g.get("held_by")), data.get("device") or "",
             " ".join(j["name"] or j["uuid"] for j in data.get("jobs") or []), data.get("last_seen") or ""),
        )  # fmt: skip
    print_rows(("ID", "LABEL", "STATE", "GPUS", "FREE", "DEVICE", "RUNS", "LAST HEARTBEAT"), rows)


@app.command()
def drain(
    host: HostArgument,
    stop_jobs: Annotated[
        bool, typer.Option("--stop-jobs", help="Also move what runs there, with a checkpoint.")
    ] = False,
) -> None:
    """Start nothing new on a host."""
    with user_errors(), Client() as client:
        client.hosts.drain(_find(client, host), stop_jobs=stop_jobs)
    out.print(f"{host} drained")


@app.command()
def undrain(host: HostArgument) -> None:
    """Let a host take jobs again."""
    with user_errors(), Client() as client:
        client.hosts.undrain(_find(client, host))
    out.print(f"{host} takes jobs again")


@app.command("join-code")
def join_code(output: OutputOption = "text") -> None:
    """Print a one-time code for `trainyard agent join URL CODE`."""
    with user_errors(output), Client() as client:
        reply = client.hosts.join_code()
        url = client.url
    if output == "json":
        print_json(reply)
    else:
        out.print(f"On the new host: trainyard agent join {url} {reply['code']}")


def _find(client: Client, text: str) -> str:
    hits = [h for h in client.hosts.list() if text in (h.id, h.label)]
    if len(hits) != 1:
        raise fail(f"{text!r} fits {len(hits)} hosts; give an id from `trainyard hosts ls`.")
    return hits[0].id
