"""`trainyard agent`: run the agent of this host, or let this host join a stack."""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated

import typer

from services.gpu_agent.settings import AgentSettings
from shared.bus.keys import new_seed, public_key_of, write_atomically
from shared.runs import write_atomic_json
from trainyard.cli.output import fail, out, user_errors
from trainyard.client import Client

app = typer.Typer(invoke_without_command=True, help="Run the agent on a training host.")


@app.callback()
def agent(context: typer.Context) -> None:
    """Run the agent of this host until SIGTERM; trainers outlive it."""
    if context.invoked_subcommand is None:
        argv = [sys.executable, "-P", "-m", "services.gpu_agent"]
        os.execv(sys.executable, argv)


@app.command()
def join(
    url: Annotated[str, typer.Argument(help="Address of the api.")],
    code: Annotated[str, typer.Argument(help="One-time code from `trainyard hosts join-code`.")],
    label: Annotated[str | None, typer.Option(help="Name to show; default the host name.")] = None,
) -> None:
    """Let this host join a stack; then start it with `trainyard agent`."""
    settings = AgentSettings()
    home = settings.files.home
    if (home / "host.json").exists():
        raise fail(
            f"This host has already joined ({home / 'host.json'}). Remove that file to join anew."
        )
    seed, name = new_seed(), label or platform.node()
    with user_errors(), Client(url) as client:
        reply = client.hosts.join(code, public_key_of(seed), name)
    write_atomically(settings.home / "keys" / f"{reply['host_id']}.nk", seed)
    home.mkdir(parents=True, exist_ok=True)
    host = {k: reply[k] for k in ("host_id", "nats_url", "restrict_paths")}
    host |= {"api": url, "label": name}
    write_atomic_json(home / "host.json", host)
    out.print(f"Joined as {reply['host_id']}. Start it with: trainyard agent")
