"""Entry point of `trainyard`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from trainyard.cli import agent, backup, demo, doctor, hosts, jobs, reward, services
from trainyard.cli.output import fail

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Post-training of language models on your own hosts, watched live.",
)
app.add_typer(jobs.app, name="jobs")
app.add_typer(hosts.app, name="hosts")
app.add_typer(agent.app, name="agent")
app.add_typer(reward.app, name="reward")
models = typer.Typer(no_args_is_help=True, help="Make small models for trying things out.")
app.add_typer(models, name="models")
app.command()(doctor.doctor)
app.command()(demo.demo)
app.command()(backup.backup)
app.command()(backup.restore)
for _command in (services.api, services.scheduler, services.broker, services.health):
    app.command()(_command)


@app.command()
def up(
    no_agent: Annotated[bool, typer.Option("--no-agent", help="Start no agent here.")] = False,
    no_reward: Annotated[
        bool, typer.Option("--no-reward", help="Start no reward service here.")
    ] = False,
    stop_jobs: Annotated[
        bool,
        typer.Option("--stop-jobs", help="On exit, stop running jobs with a checkpoint first."),
    ] = False,
) -> None:
    """Start the broker, the api, the scheduler, the reward service and an agent on this machine."""
    from trainyard.stack.up import StackRefused, run  # noqa: PLC0415 - other commands start faster

    try:
        code = run(agent=not no_agent, reward=not no_reward, stop_jobs=stop_jobs)
    except StackRefused as error:
        raise fail(str(error)) from None
    raise typer.Exit(code)


@models.command("create")
def create_model(
    kind: Annotated[
        Literal["tiny", "arithmetic", "smollm2"],
        typer.Argument(help="tiny and arithmetic are made here; smollm2 is SmolLM2-135M."),
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder to write.")],
) -> None:
    """Make a model folder that loads with from_pretrained."""
    argv = [
        sys.executable, "-P", "-m", "services.gpu_agent.trainers.model_zoo", kind,
        "--out", str(out_dir),
    ]  # fmt: skip
    raise typer.Exit(subprocess.run(argv, check=False).returncode)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
