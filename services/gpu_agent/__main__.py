"""`python -m services.gpu_agent`: the agent of this host, until SIGTERM; what it started goes on."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any

from services.gpu_agent.daemon import Agent
from services.gpu_agent.identity import AgentRefused, InstanceLock, ensure_host, host_id
from services.gpu_agent.settings import AgentSettings
from shared import log as logs
from shared.bus.credentials import bus_config
from shared.bus.port import BusConfig, BusUnavailable

RETRY_SECONDS = 1.0


def main() -> int:
    """Run the agent; 0 after SIGTERM, 2 when it cannot run here (the sentence is on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m services.gpu_agent", description=__doc__)
    parser.add_argument(
        "--stop-jobs", action="store_true", help="at SIGTERM stop all runs with a checkpoint first"
    )
    parser.add_argument(
        "--print-host-id", action="store_true", help="print the host's id (made if need be) and end"
    )
    options = parser.parse_args()
    settings = AgentSettings()
    logs.configure("gpu_agent", settings.log_level)
    status = 0
    try:
        if options.print_host_id:
            sys.stdout.write(host_id(ensure_host(settings.files)) + "\n")
            return 0
        with InstanceLock(settings.files):
            document = ensure_host(settings.files)
            asyncio.run(_run(settings, document, stop_jobs=options.stop_jobs))
    except* AgentRefused as group:
        sys.stderr.write("".join(f"{error}\n" for error in group.exceptions))
        status = 2
    return status


async def _run(settings: AgentSettings, document: dict[str, Any], *, stop_jobs: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    config = await _config(settings, document, stop)
    if config is None:
        return
    await Agent(settings, host_id(document)).run(config, stop, stop_jobs=stop_jobs)


async def _config(
    settings: AgentSettings, document: dict[str, Any], stop: asyncio.Event
) -> BusConfig | None:
    """Return where the broker is; wait for the embedded one to have been prepared. Raises AgentRefused without a key."""
    if settings.nats_url is None and document.get("nats_url"):
        settings = settings.model_copy(update={"nats_url": document["nats_url"]})
    while not stop.is_set():
        try:
            return bus_config(settings, "agent", host_id(document))
        except BusUnavailable:
            await asyncio.sleep(RETRY_SECONDS)
        except FileNotFoundError as error:
            raise AgentRefused(
                f"This host has not joined a stack ({error}). Run `trainyard agent join URL CODE`, or start `trainyard up` here."
            ) from None
    return None


if __name__ == "__main__":
    sys.exit(main())
