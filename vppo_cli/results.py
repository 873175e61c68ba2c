"""What a run has on disk, as rows to show."""

from __future__ import annotations

import json
from typing import Any

from evals.run import RESULTS, compare
from pipelines.chain import Chain
from pipelines.runs import METRICS
from pipelines.step import Step


def recent_rows(chain: Chain) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; those of an older setting included, until it is made again."""
    path = chain.run / METRICS
    if not path.is_file():
        return []
    return [json.loads(text) for text in path.read_text().splitlines()]


def evaluation_rows(chain: Chain) -> list[dict[str, Any]]:
    """Finished evaluations by benchmark: the starting policy, then the checkpoint beside it."""
    rows = []
    last = chain.config.run.steps
    for benchmark in chain.config.eval.benchmarks:
        start, end = chain.eval(0, benchmark), chain.eval(last, benchmark)
        entries = []
        if start.path.is_dir():
            entries.append(entry(start, "starting model"))
        if end.path.is_dir():
            row = entry(end, f"after {last} steps ({chain.config.update.objective})")
            if start.path.is_dir():
                change = compare(start.path, end.path)
                row["difference"] = 100 * change.mean
                row["difference_interval"] = [100 * change.low, 100 * change.high]
            entries.append(row)
        if entries:
            results = json.loads(((end if end.path.is_dir() else start).path / RESULTS).read_text())
            rows.append({
                "benchmark": benchmark, "questions": len(results["questions"]),
                "samples": results["sampling"]["samples"], "results": entries,
            })  # fmt: skip
    return rows


def entry(step: Step, policy: str) -> dict[str, Any]:
    """One line of an evaluation table."""
    manifest = step.manifest()
    assert manifest is not None
    metrics = manifest["metrics"]
    return {
        "policy": policy, "step": step.index, "accuracy": metrics["accuracy"],
        "interval": metrics["interval"], "outcomes": metrics["outcomes"],
        "pass_at_k": metrics["pass_at_k"],
    }  # fmt: skip
