"""The default run by the engines of scale, beside the embedded ones: it must learn, and agree.

    make scale        # about half an hour on two cores

Three runs of configs/tiny.yaml: ``hf`` and ``torch`` in one process; vLLM in one process; vLLM and
DeepSpeed on two ranks. They sample differently, so they agree as runs of different seeds do:

- at step 1, where the policy is the same, the accuracy on the same prompts, and the perception and
  entropy per token, differ by less than four standard errors;
- each learns: the interval of its gain on held-out questions lies above 0;
- none ends surely below the first by more than ``POINTS``.

Prints the figures and writes them to build/scale/agreement.json. Exit code 0: all hold; 1: not.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "scale"
POINTS = 5.0
ERRORS = 4.0

RUNS = {
    "embedded": [],
    "vllm": ["--set", "rollout.engine=vllm"],
    "vllm-deepspeed-2": ["--set", "rollout.engine=vllm", "--set", "update.engine=deepspeed", "--nproc-per-node", "2"],
}


def vppo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command; its progress goes to the terminal."""
    env = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "VPPO_RUNS": str(OUT), **os.environ}
    return subprocess.run(
        [sys.executable, "-m", "vppo_cli", *arguments],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE if "--json" in arguments else None,
    )


def first_step(run: Path) -> dict[int, dict[str, float]]:
    """Position of a prompt of step 1 -> its mean accuracy, perception and entropy per token."""
    (rollouts,) = run.glob("steps/0001/rollout-*/rollouts.parquet")
    (scores,) = run.glob("steps/0001/score-*/scores.parquet")
    found = {}
    for group, scored in zip(pq.read_table(rollouts).to_pylist(), pq.read_table(scores).to_pylist(), strict=True):
        found[group["position"]] = {
            "accuracy": fmean(outcome == "correct" for outcome in group["outcome"]),
            "perception": fmean(x for response in scored["perception"] for x in response),
            "entropy": fmean(x for response in scored["entropy"] for x in response),
        }
    return found


def paired(one: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Differences on the prompts both have: mean, in standard errors."""
    both = sorted(one.keys() & other.keys())
    result: dict[str, Any] = {"prompts": len(both)}
    for name in ("accuracy", "perception", "entropy"):
        gaps = [other[p][name] - one[p][name] for p in both]
        error = stdev(gaps) / math.sqrt(len(gaps))
        result[name] = {"difference": fmean(gaps), "standard_errors": fmean(gaps) / error}
    return result


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    faults = []
    for name, options in RUNS.items():
        print(f"--- {name}", flush=True)
        if vppo("train", "--run", name, *options, *sys.argv[1:]).returncode:
            print(f"FAULT     {name} did not run to its end")
            return 1
        metrics = [json.loads(row) for row in (OUT / name / "metrics.jsonl").open()]
        report = json.loads(vppo("train", "--run", name, *options, *sys.argv[1:], "--json").stdout)
        last = report["evaluations"][0]["results"][-1]
        found[name] = {
            "accuracy": last["accuracy"],
            "gain_points": last["difference"],
            "gain_interval": last["difference_interval"],
            "mismatch_mean": max(row["score/mismatch_mean"] for row in metrics),
            "mismatch_max": max(row["score/mismatch_max"] for row in metrics),
        }
        if last["difference_interval"][0] <= 0:
            faults.append(f"{name} did not learn")
    for name in list(RUNS)[1:]:
        beside = paired(first_step(OUT / "embedded"), first_step(OUT / name))
        found[name]["step_1"] = beside
        for what in ("accuracy", "perception", "entropy"):
            if abs(beside[what]["standard_errors"]) > ERRORS:
                faults.append(f"{name}: {what} at step 1 differs: {beside[what]}")
        if vppo("compare", "embedded", name, "--fail-below", str(-POINTS)).returncode:
            faults.append(f"{name} ends more than {POINTS} points below the embedded engines")
    (OUT / "agreement.json").write_text(json.dumps(found | {"faults": faults}, indent=1))
    print(json.dumps(found, indent=1))
    for fault in faults:
        print(f"FAULT     {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
