"""What verl calls for every completion (`custom_reward_function`). Standard library only: it runs in verl's environment.

It asks the process that started verl, over a socket in a folder that only this user may enter; that one knows the job's
reward, asks the reward service and keeps the secrets (`verl_judge`).

verl 0.7.0 has no way to leave a completion out: each must have a number. A completion without a verdict is therefore
asked for again, and where nobody can score it after that the attempt ends with the reason `reward_unavailable` and goes on
later from its last save; it is never counted as zero. (With engine trl it would be masked.)
"""

import json
import socket

NO_VERDICT = "trainyard: no verdict"


class NoVerdict(RuntimeError):
    """Nobody could score a completion; verl ends with it."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, socket_path="", **_):  # type: ignore[no-untyped-def]
    """Return {"score", "acc"} of one completion. Raises NoVerdict, OSError. verl calls it in threads."""
    row = (extra_info or {}).get("row") or "{}"
    asked = {"completion": solution_str, "solution": ground_truth, "row": row}
    with socket.socket(socket.AF_UNIX) as judge:
        judge.connect(socket_path)
        with judge.makefile("rwb") as stream:
            stream.write(json.dumps(asked).encode() + b"\n")
            stream.flush()
            answer = json.loads(stream.readline())
    if "error" in answer:
        raise NoVerdict(f"{NO_VERDICT} on a completion ({answer['error']})")
    return {"score": answer["score"], "acc": answer["acc"]}
