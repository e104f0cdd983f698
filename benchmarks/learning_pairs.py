"""Does preference training learn? DPO and a reward model on `sales_dpo.jsonl`, judged by pairs that neither was shown.

`python -m benchmarks.learning_pairs dpo|reward_model|ppo [--seeds 3]` trains on one core as an agent would start it, and
keeps the curves in `benchmarks/results/`. Every pair has a prompt of its own; one in five, by the hash of its prompt, is
held out. In this dataset the chosen answer is always the longer one, so the score of a rule that prefers length is told
beside the model's, and the reward model is asked once more about pairs cut to the same length.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.integration.reward.conftest import Service  # noqa: E402 - found by the line above

RESULTS = ROOT / "benchmarks" / "results"
PAIRS = ROOT / "datasets" / "sales_dpo.jsonl"
Row = dict[str, str]

SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {
        "learning_rate": 5e-4, "batch_size": 8, "num_epochs": 3, "beta": 0.1, "warmup_steps": 5,
        "context_length": 768, "eval_steps": 10, "save_steps": 1000,
    },
    "sft": {
        "learning_rate": 2e-3, "batch_size": 8, "num_epochs": 6, "warmup_steps": 10,
        "context_length": 768, "eval_steps": 50, "save_steps": 1000,
    },
    "ppo": {
        "learning_rate": 3e-4, "batch_size": 16, "rollout_n": 2, "num_epochs": 5, "kl_coef": 0.002,
        "max_completion_length": 128, "context_length": 320, "ppo_minibatches": 2, "ppo_epochs": 2,
        "eval_steps": 10, "save_steps": 1000, "warmup_steps": 5, "reward_model_type": "model",
    },
    "reward_model": {
        "learning_rate": 5e-4, "batch_size": 8, "num_epochs": 3, "warmup_steps": 5,
        "context_length": 768, "eval_steps": 10, "save_steps": 1000,
    },
}  # fmt: skip


def split() -> tuple[list[Row], list[Row]]:
    """Return the pairs to train on and those held out."""
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    held = [int(hashlib.sha256(row["prompt"].encode()).hexdigest(), 16) % 5 == 0 for row in rows]
    train = [row for row, out in zip(rows, held, strict=True) if not out]
    kept = [row for row, out in zip(rows, held, strict=True) if out]
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in kept}
    return train, kept


def same_length(rows: list[Row]) -> list[Row]:
    """Return the pairs with both answers cut to the shorter one's number of characters: length tells nothing then."""
    found = []
    for row in rows:
        shared = min(len(row["chosen"]), len(row["rejected"]))
        found.append(row | {"chosen": row["chosen"][:shared], "rejected": row["rejected"][:shared]})
    return found


class Job:
    """One attempt in a process of its own."""

    def __init__(
        self, folder: Path, algorithm: str, model: Path, config: dict[str, Any], seed: int
    ):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self._attempt = folder / "attempts" / "1"
        self._attempt.mkdir(parents=True)
        self._spec = {
            "job": folder.name, "attempt": 1, "algorithm": algorithm, "model_path": str(model),
            "config": {"seed": seed, "gradient_checkpointing": False, **config},
            "checkpoint_dir": str(self.checkpoints), "work_dir": str(folder),
            "attempt_dir": str(self._attempt), "threads": 1,
        }  # fmt: skip

    def run(self, train: list[Row], held_out: list[Row], **fields: Any) -> float:
        """Train to the end; return the seconds it took. Raises RuntimeError with what it said."""
        for name, rows in (("train", train), ("eval", held_out)):
            path = self.folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
            self._spec[f"{name}_data_path"] = str(path)
        (self._attempt / "spec.json").write_text(json.dumps(self._spec | fields))
        command = [sys.executable, "-P", "-m", "services.gpu_agent.trainers", str(self._attempt)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        began = time.monotonic()
        done = subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        return time.monotonic() - began

    def curve(self, *names: str) -> list[dict[str, float]]:
        """Return the figures of each evaluation."""
        found: dict[int, dict[str, float]] = {}
        for line in (self._attempt / "events.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["type"] == "metric" and any(n in event["metrics"] for n in names):
                point = found.setdefault(event["step"], {"step": event["step"]})
                point |= {n: round(v, 4) for n, v in event["metrics"].items() if n in names}
        return [found[step] for step in sorted(found)]

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return max(self.checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


def model(out: Path, kind: str) -> Path:
    """Make a model of the zoo."""
    zoo = [
        sys.executable,
        "-P",
        "-m",
        "services.gpu_agent.trainers.model_zoo",
        kind,
        "--out",
        str(out),
    ]
    subprocess.run(zoo, check=True, cwd=ROOT, capture_output=True)
    return out


def learn_from_rewards(seed: int, root: Path, base: Path) -> dict[str, Any]:
    """Train a reward model, fine-tune a policy on answers of both kinds, and let PPO raise what the first says of the second.

    Evaluated on prompts that neither of the three was shown; greedy answers, scored beside the trainer.
    """
    learned, judge = learn("reward_model", seed, root, base)
    train, held_out = split()
    answers = [[{"prompt": r["prompt"], "response": r[k]} for r in rows for k in ("chosen", "rejected")] for rows in (train, held_out)]  # fmt: skip
    start = Job(root / f"sft-{seed}", "sft", base, SETTINGS["sft"], seed)
    start.run(*answers)
    prompts = [[{"prompt": r["prompt"]} for r in rows] for rows in (train, held_out)]
    config = SETTINGS["ppo"] | {"reward_model_path": str(judge.last)}
    job = Job(root / f"ppo-{seed}", "ppo", start.last, config, seed)
    home = root / f"rules-{seed}"
    with Service(home, TRAINYARD_REWARD_RULES_ONLY="true"):
        seconds = job.run(
            *prompts,
            rules_file=str(home / "run" / "reward.json"),
            model_paths={"reward_model_path": str(judge.last)},
        )
    curve = job.curve("eval_reward")
    trained = job.curve("reward", "kl_divergence", "completion_length", "valid_reward_rate")
    return {
        "seed": seed, "reward_model_accuracy": learned["accuracy"], "seconds": round(seconds, 1),
        "eval_reward": [point["eval_reward"] for point in curve],
        "reward_first_and_last_five": [
            round(sum(p["reward"] for p in part) / len(part), 4) for part in (trained[:5], trained[-5:])
        ],
        "valid_reward_rate": min(p["valid_reward_rate"] for p in trained),
        "completion_length": [trained[0]["completion_length"], trained[-1]["completion_length"]],
        "kl_divergence": trained[-1]["kl_divergence"], "curve": trained,
    }  # fmt: skip


def learn(algorithm: str, seed: int, root: Path, base: Path) -> tuple[dict[str, Any], Job]:
    """Train on four fifths of the pairs; return what the held-out ones say, and the job."""
    train, held_out = split()
    job = Job(root / f"{algorithm}-{seed}", algorithm, base, SETTINGS[algorithm], seed)
    seconds = job.run(train, held_out)
    curve = job.curve("eval_loss", "eval_accuracy", "eval_reward_margin")
    longer = sum(len(r["chosen"]) > len(r["rejected"]) for r in held_out) / len(held_out)
    found = {
        "seed": seed, "trained_pairs": len(train), "held_out_pairs": len(held_out),
        "seconds": round(seconds, 1), "accuracy": curve[-1]["eval_accuracy"],
        "margin": [point["eval_reward_margin"] for point in curve],
        "accuracy_of_length_alone": longer, "curve": curve,
    }  # fmt: skip
    return found, job


def prove(what: str, seed: int, root: Path, base: Path) -> dict[str, Any]:
    """Return the figures of one seed."""
    if what == "ppo":
        return learn_from_rewards(seed, root, base)
    found, job = learn(what, seed, root, base)
    even = same_length(split()[1])
    if what == "reward_model":
        return found | {"accuracy_at_same_length": served_accuracy(job.last, even)}
    # one step without any learning: the evaluation alone counts, against the model that training began with
    settings = SETTINGS[what] | {"max_steps": 1, "learning_rate": 0.0}
    again = Job(root / f"{what}-{seed}-even", what, job.last, settings, seed)
    again.run(split()[0][:8], even, model_paths={"ref_model_path": str(base)})
    last = again.curve("eval_accuracy")[-1]
    return found | {"accuracy_at_same_length": last["eval_accuracy"]}


def main() -> None:
    """Run one proof and keep its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["dpo", "reward_model", "ppo"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = model(Path(folder) / "model", options.model)
        rows = []
        for seed in range(options.seeds):
            rows.append(found := prove(options.what, seed, Path(folder), base))
            shown = {k: v for k, v in found.items() if k != "curve"}
            print(json.dumps(shown), flush=True)
    document = {
        "what": options.what,
        "model": options.model,
        "settings": SETTINGS[options.what],
        "runs": rows,
    }
    path = RESULTS / f"learning_{options.what}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")


def served_accuracy(folder: Path, pairs: list[Row]) -> float:
    """Return how often the reward service's own model process scores the chosen answer higher."""
    code = (
        "import json,sys\nfrom services.reward.model_process import Scorer\n"
        "pairs=json.load(sys.stdin)\ns=Scorer(sys.argv[1])\n"
        "c=s.scores([(p['prompt'],p['chosen']) for p in pairs],1024)\n"
        "r=s.scores([(p['prompt'],p['rejected']) for p in pairs],1024)\n"
        "print(sum(a>b for a,b in zip(c,r))/len(pairs))"
    )
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder)], input=json.dumps(pairs), env=env,
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return round(float(done.stdout.split()[-1]), 4)


if __name__ == "__main__":
    main()
