"""The warm process: has imported what trainers need, and forks one for each start command; nothing else happens in it.

`python -m services.gpu_agent.zygote --socket FD`: blocking, single-threaded, no asyncio, no question to CUDA, no
matrix product (a forked child would hang in its first one). It ends when the agent at the other end of the socket is gone;
the runs that it forked go on.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from services.gpu_agent import shim

PRELOAD = "services.gpu_agent.trainers.preload"
ENTRY = "services.gpu_agent.trainers.entry"
_MESSAGE_BYTES = 64 * 1024
RunAttempt = Callable[[Path, Mapping[str, str]], int]
ReadSecrets = Callable[[int], dict[str, str]]


def main() -> int:
    """Preload, then serve start commands until the agent is gone."""
    parser = argparse.ArgumentParser(prog="python -m services.gpu_agent.zygote")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--preload", default=PRELOAD, help="module with preload()")
    parser.add_argument(
        "--entry", default=ENTRY, help="module with run_attempt() and read_secrets()"
    )
    options = parser.parse_args()
    with socket.socket(fileno=options.socket) as agent:
        agent.setblocking(True)
        began = time.monotonic()
        importlib.import_module(options.preload).preload()
        entry = importlib.import_module(options.entry)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the shims
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the agent
        gc.collect()
        gc.freeze()  # the collector leaves shared pages alone
        agent.send(json.dumps({"ready": True, "seconds": time.monotonic() - began}).encode())
        _serve(agent, entry.run_attempt, entry.read_secrets)
    return 0


def _serve(agent: socket.socket, run_attempt: RunAttempt, read_secrets: ReadSecrets) -> None:
    while True:
        data, descriptors, _, _ = socket.recv_fds(agent, _MESSAGE_BYTES, 4)
        if not data:
            return
        if os.fork() == 0:
            _become_shim(json.loads(data), descriptors, run_attempt, read_secrets)
        for descriptor in descriptors:
            os.close(descriptor)


def _become_shim(
    command: dict[str, Any],
    descriptors: list[int],
    run_attempt: RunAttempt,
    read_secrets: ReadSecrets,
) -> NoReturn:
    """In the child: take the locks, fork the trainer, and become the shim by exec. Never returns."""
    code = shim.EX_START
    try:
        attempt_dir: str = command["attempt_dir"]
        ready, secrets = descriptors[0], descriptors[1] if len(descriptors) > 1 else None
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        shim.become_subreaper()
        launch = shim.read_launch(attempt_dir)
        try:
            locks = shim.begin(attempt_dir, launch)
        except shim.Locked as error:
            shim.report(ready, {"error": "locked", "path": str(error)})
            os._exit(shim.EX_LOCKED)
        except FileExistsError:
            shim.report(ready, {"error": "used"})
            os._exit(shim.EX_USED)
        trainer = os.fork()
        if trainer == 0:
            _become_trainer(attempt_dir, launch, locks, secrets, run_attempt, read_secrets)
        shim.record(attempt_dir, trainer, warm=True)
        shim.report(ready, {"ok": True, "trainer": trainer, "shim": os.getpid(), "warm": True})
        for lock in locks:
            os.set_inheritable(lock, True)
        arguments = ["adopt", attempt_dir, str(trainer), ",".join(map(str, locks))]
        os.execv(sys.executable, [sys.executable, "-I", "-S", shim.__file__, *arguments])
    except BaseException:  # noqa: BLE001 - a forked child must end here, whatever happened
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _become_trainer(
    attempt_dir: str,
    launch: dict[str, Any],
    locks: list[int],
    secrets: int | None,
    run_attempt: RunAttempt,
    read_secrets: ReadSecrets,
) -> NoReturn:
    """In the grandchild: run the attempt and leave without the interpreter's shutdown. Never returns."""
    code = shim.EX_START
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        shim.enter_trainer(launch, locks if secrets is None else [*locks, secrets])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        wanted = shim.trainer_env(launch)
        for name in set(os.environ) - set(wanted):
            del os.environ[name]
        os.environ.update(wanted)
        os.chdir(os.path.dirname(launch["log"]))  # noqa: PTH120
        faulthandler.enable(file=2, all_threads=True)
        code = run_attempt(Path(attempt_dir), {} if secrets is None else read_secrets(secrets))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - the shim reports the code, the log has the traceback
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
