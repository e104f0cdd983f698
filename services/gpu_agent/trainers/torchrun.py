"""Several ranks of one host as one trainer: `python -m services.gpu_agent.trainers.torchrun ATTEMPT_DIR [--secrets-fd N]`.

It is the process that shim and agent know as the trainer. torchrun's own launcher (`torch.distributed.launcher`) starts
the ranks, watches them, and ends the rest where one dies. It is called here instead of by `python -m
torch.distributed.run` (or `accelerate launch`, which calls the same one) for three reasons: torchrun kills its ranks 30 s
after a SIGTERM, and a step with its checkpoint takes longer, so the ranks are told by a signal of their own and nothing
else is done; the ranks' ends become one result; and a death by signal is passed on as it was, so that the shim sees it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from services.gpu_agent import shim
from services.gpu_agent.core.rank_ends import Ended, RankEnd, together
from services.gpu_agent.trainers import ranks
from services.gpu_agent.trainers.context import write_line
from shared.runs import RESULT_FILE, SPEC_FILE, RunResult, RunSpec, write_atomic_json

_PASSED_ON = {signal.SIGTERM: ranks.STOP_SIGNAL, signal.SIGUSR1: signal.SIGUSR1}
"""Stop, and dump stacks: what comes from agent and shim, and what a rank gets."""


class Signals:
    """Hands on to the ranks what agent and shim ask for. One that is too early is no loss: ranks look for `stop.json`."""

    def __init__(self) -> None:
        self.stop_asked = False

    def install(self) -> None:
        """Take the signals over."""
        for number in _PASSED_ON:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.stop_asked = self.stop_asked or number == signal.SIGTERM
        for pid in children():
            try:
                os.kill(pid, _PASSED_ON[signal.Signals(number)])
            except ProcessLookupError:
                continue


def children() -> list[int]:
    """Return the processes that this one has started and that still run."""
    me = os.getpid()
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    return [pid for pid in pids if (fields := shim.stat_fields(pid)) and fields[0] == me]


def main(arguments: list[str] | None = None) -> int:
    """Run all ranks and write the attempt's result; return the exit code, or die as a rank has died."""
    parser = argparse.ArgumentParser(prog="python -m services.gpu_agent.trainers.torchrun")
    parser.add_argument("attempt_dir", type=Path)
    parser.add_argument("--secrets-fd", type=int, default=None)
    options = parser.parse_args(arguments)
    attempt_dir: Path = options.attempt_dir
    signals = Signals()
    signals.install()
    spec = RunSpec.model_validate_json((attempt_dir / SPEC_FILE).read_bytes())
    deaths = _launch(attempt_dir, len(spec.gpus), options.secrets_fd)
    ends = [_end(attempt_dir, rank, deaths) for rank in range(len(spec.gpus))]
    return _pass_on_end(attempt_dir, together(ends, asked=signals.stop_asked))


def _launch(attempt_dir: Path, count: int, secrets: int | None) -> Mapping[int, int]:
    """Run the ranks to their end. Return the exit codes (negative: signals) of those that were the first to fail."""
    # torch only here: the signals above are taken over within a fraction of a second
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this host
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",  # a store on a free port, as `--standalone` makes it
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # else the host's full name is looked up, which not every host can answer
        max_restarts=0,  # the scheduler decides on retries
        signals_to_handle="SIGQUIT",  # all others are ours
    )
    command = ["-P", "-m", "services.gpu_agent.trainers", str(attempt_dir)]
    if secrets is not None:
        # torchrun closes descriptors; opened anew under this name the memory file has an offset for each rank
        command += ["--secrets-path", f"/proc/{os.getpid()}/fd/{secrets}"]
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    return {}


def _end(attempt_dir: Path, rank: int, deaths: Mapping[int, int]) -> RankEnd:
    code = deaths.get(rank)
    path = attempt_dir / ranks.result_name(rank, 2)
    result, written = None, 0
    try:
        result = RunResult.model_validate_json(path.read_bytes())
        written = path.stat().st_mtime_ns
    except (OSError, ValueError):
        pass  # it was killed, or could not write: what the launcher saw has to do
    died = None if code is None or code >= 0 else -code
    return RankEnd(rank, result, written, died, code)


def _pass_on_end(attempt_dir: Path, ended: Ended) -> int:
    if ended.result is not None:
        try:
            write_atomic_json(attempt_dir / RESULT_FILE, ended.result)
        except (OSError, ValueError) as error:
            write_line("ERROR", f"The result could not be written: {error}")
            return 1
    elif ended.signal is not None:
        write_line("ERROR", f"A rank was ended by {signal.Signals(ended.signal).name}")
        if ended.signal != signal.SIGKILL:
            signal.signal(ended.signal, signal.SIG_DFL)
        os.kill(os.getpid(), ended.signal)
    return ended.code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the interpreter's farewell takes seconds
