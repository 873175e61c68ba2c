"""What a run has on disk, as rows to show."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from evals.benchmarks.table import canonical
from evals.compare import compare, load
from evals.report import build as report
from evals.rewards import with_rewards
from evals.run import read_results
from pipelines.chain import Chain
from pipelines.config.schema import Config
from pipelines.disk.records import RESULTS
from pipelines.disk.step import Step, is_there
from pipelines.errors import UserError
from pipelines.runs import metric_rows
from pipelines.words import counted


def recent_rows(chain: Chain) -> list[dict[str, Any]]:
    """What metrics.jsonl has, from the manifests that it is made of, which carry hashes."""
    return metric_rows(chain)


def evaluation_rows(chain: Chain) -> list[dict[str, Any]]:
    """Finished evaluations by benchmark: the starting policy, then the checkpoint beside it."""
    rows = []
    last = chain.config.run.steps
    for benchmark in shown_benchmarks(chain):
        start, end = chain.eval(0, benchmark), chain.eval(last, benchmark)
        entries, unread = [], []
        if is_there(start.path):
            entries.append(entry(start, "starting model"))
        if is_there(end.path):
            row = entry(end, f"after {counted(last, 'step')} ({chain.config.update.objective})")
            if is_there(start.path):
                first, second = (load(str(step.path))[1] for step in (start, end))
                try:
                    first, second = (
                        [with_rewards(result, step.path / RESULTS) for result in results]
                        for step, results in ((start, first), (end, second))
                    )
                except UserError as error:  # to look at a run, nobody needs the difference
                    unread = [f"the difference of rewards is left out: {error.place}: {error.problem}"]
                both = compare(first, second).changes[0]
                row["difference"] = 100 * both.change.mean
                row["difference_interval"] = [100 * both.change.low, 100 * both.change.high]
                for name, paid in both.rewards.items():
                    row["rewards"][name] = {**row["rewards"][name], **paid.as_row()}
            entries.append(row)
        if entries:
            found = [read_results(step.path) for step in (start, end) if is_there(step.path)]
            warnings = {
                text if all(text in results["warnings"] for results in found) else f"{one['policy']}: {text}": None
                for one, results in zip(entries, found, strict=True)
                for text in results["warnings"]
            } | dict.fromkeys(unread)
            rows.append(
                {
                    "benchmark": benchmark,
                    "questions": found[-1]["questions"],
                    "samples": found[-1]["samples"],
                    "results": entries,
                    **({"warnings": list(warnings)} if warnings else {}),
                }
            )
    return rows


def shown_benchmarks(chain: Chain) -> list[str]:
    """The run's benchmarks, but one by an import path that leads nowhere from here: to look at a run, nobody
    needs its parts."""
    found: list[str] = []
    for name in chain.config.eval.benchmarks:
        with suppress(UserError):
            found += canonical([name], chain.config)
    return list(dict.fromkeys(found))


def entry(step: Step, policy: str) -> dict[str, Any]:
    """One line of an evaluation table."""
    manifest = step.manifest()
    assert manifest is not None
    metrics = manifest["metrics"]
    return {
        "policy": policy,
        "step": step.index,
        "accuracy": metrics["accuracy"],
        "interval": metrics["interval"],
        "outcomes": metrics["outcomes"],
        "pass_at_k": metrics["pass_at_k"],
        **({"rewards": metrics["rewards"]} if "rewards" in metrics else {}),
    }


def policy_name(step: int) -> str:
    """What the policy after ``step`` updates is called."""
    return f"checkpoint {step}" if step else "starting model"


def write_report(chain: Chain, config: Config, step: int, label: str = "") -> tuple[dict[str, Any], list[Path]]:
    """The report on a policy's evaluations as ``config`` has them, and its files.

    The files (``eval/NNNN/report.*``) also keep what an earlier report says of the same policy on
    other benchmarks, so that they grow benchmark by benchmark.

    Args:
        label: what the policy is called; by default its step and run.
    """
    cells = [chain.cell(step, name, config) for name in canonical(config.eval.benchmarks, config)]
    found = [read_results(cell.results.path) for cell in cells]
    label = label or f"{policy_name(step)} of {chain.run.name}"
    folder = chain.run / "eval" / f"{step:04d}"
    whole = [*found, *_earlier(folder, found)]
    files = report.write(report.build(label, whole, chain.config.model.path), folder)
    return report.build(label, found, chain.config.model.path), files


def _earlier(folder: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the report in ``folder`` says of the same policy on benchmarks that are not in ``found``.

    Raises:
        UserError: it is damaged: what it says of others would be lost.
    """
    if not is_there(folder / report.REPORT):
        return []
    _, old = load(str(folder / report.REPORT))
    names = {result["benchmark"] for result in found}
    policy = found[0]["policy"]
    return [r for r in old if r["benchmark"] not in names and r.get("policy") == policy]


def write_reports(chain: Chain, *, again: bool) -> None:
    """Reports on what a run evaluates at its end, where that is done.

    Args:
        again: also those that are there; else what a kill has kept from being written.
    """
    ends = (0, chain.config.run.steps) if chain.config.eval.baseline else (chain.config.run.steps,)
    for step in ends:
        missing = [f for f in report.FILES if not (chain.run / "eval" / f"{step:04d}" / f).is_file()]
        done = all(is_there(chain.eval(step, n).path) for n in chain.benchmarks)
        if chain.benchmarks and done and (again or missing):
            write_report(chain, chain.config, step)
