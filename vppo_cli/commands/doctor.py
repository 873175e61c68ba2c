"""``vppo doctor``: is this environment fit, and if not, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pipelines.errors import UserError
from vppo_cli.options import Json
from vppo_cli.screen.words import size

REQUIRED = ("torch", "torchvision", "transformers", "datasets", "math-verify", "lm-eval", "mathruler", "pydantic")
OPTIONAL = {"vllm": "fast rollouts on GPUs", "deepspeed": "updates on several GPUs"}
NEEDED_DISK = 2e9


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``bad`` ones make the exit code 1."""

    name: str
    state: Literal["ok", "note", "bad"]
    found: str
    advice: str = ""


def doctor(json: Json = False) -> None:
    """Check this environment: packages, devices, graders, disk; and say what to do."""
    from rich.markup import escape

    from vppo_cli.screen import display

    findings = []
    marks = {"ok": "[green]ok  [/green]", "note": "[yellow]note[/yellow]", "bad": "[red]bad [/red]"}
    for check in CHECKS:
        for finding in check():
            findings.append(finding)
            if json:
                continue
            display.console.print(f"{marks[finding.state]}  [bold]{finding.name:<14}[/bold]{escape(finding.found)}")
            if finding.advice:
                display.console.print(escape(f"{'':20}{finding.advice}"), style="dim")
    bad = [finding for finding in findings if finding.state == "bad"]
    if json:
        display.print_json({"ok": not bad, "findings": [asdict(finding) for finding in findings]})
    else:
        display.line("\nresult", f"{len(bad)} to mend" if bad else "ready: vppo train")
    if bad:
        sys.exit(1)


def _system() -> Iterator[Finding]:
    import psutil

    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    memory, cores = psutil.virtual_memory(), len(os.sched_getaffinity(0))
    yield Finding("machine", "ok", f"{cores} cores, {size(memory.total)} memory, {size(memory.available)} free")
    busy = psutil.getloadavg()[0]
    if busy > cores:
        yield Finding("load", "note", f"{busy:.1f} on {cores} cores", "Other work will slow a run down.")


def _packages() -> Iterator[Finding]:
    for package in REQUIRED:
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            yield Finding(package, "bad", "not installed", f"pip install {package}")
    for package, use in OPTIONAL.items():
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            yield Finding(package, "note", f"not installed ({use})", "pip install 'vppo[gpu]'")


def _plain_transformers() -> Iterator[Finding]:
    """Whether others can load what ``vppo export`` writes: they do not prepare torchvision as we do."""
    script = "from transformers import AutoProcessor"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        yield Finding("AutoProcessor", "ok", "can be imported from transformers")
        return
    said = (ran.stderr.strip().splitlines() or ["no message"])[-1]
    yield Finding(
        "AutoProcessor",
        "bad",
        f"cannot be imported from transformers: {said}",
        "Make the environment with make, or install a torchvision that fits torch.",
    )


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            yield Finding(f"gpu {index}", "ok", f"{card.name}, {size(card.total_memory)}")
    else:
        yield Finding("gpu", "note", "none", "Fine for configs/tiny.yaml; larger models need one.")
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    if threads > cores:
        yield Finding("threads", "note", f"{threads} on {cores} cores", f"--set run.threads={cores}")


def _model() -> Iterator[Finding]:
    from pipelines.config.settings import load
    from pipelines.model.load import load_policy

    try:
        policy = load_policy(load())
    except (UserError, ImportError, RuntimeError) as error:
        yield Finding("tiny model", "bad", str(error).splitlines()[0], "Reinstall vppo.")
        return
    count = sum(p.numel() for p in policy.model.parameters())
    yield Finding("tiny model", "ok", f"{type(policy.model).__name__}, {count / 1e6:.1f} M parameters")


def _graders() -> Iterator[Finding]:
    from pipelines.grading.graders import GRADERS, GraderPool

    with GraderPool(workers=1, deadline_s=30.0) as pool:
        for grader in GRADERS:
            try:
                verdicts = pool.grade([("\\frac{1}{2}", "0.5", "value"), ("2", "x+1", "value")], grader)
            except UserError as error:
                yield Finding(grader, "bad", str(error), f"pip install {grader}")
                continue
            state: Literal["ok", "bad"] = "ok" if verdicts == [True, False] else "bad"
            yield Finding(grader, state, f"1/2 = 0.5: {verdicts[0]}; 2 = x+1: {verdicts[1]}")


def _grader_walls() -> Iterator[Finding]:
    """What a grading process tried and could not do, on this machine."""
    from pipelines.grading.graders import GraderPool

    with GraderPool(workers=1) as pool:
        try:
            held = pool.try_walls()
        except UserError as error:
            yield Finding("grader walls", "bad", str(error), "See the graders above.")
            return
    refused = [name for name, was_refused in held.refused.items() if was_refused]
    open_ones = [name for name, was_refused in held.refused.items() if not was_refused]
    by = [name for name, missing in held.means.items() if not missing]
    missing = [f"{name}: {why}" for name, why in held.means.items() if why]
    found = f"no {', '.join(refused)}" if refused else "none"
    found += f"; by {', '.join(by)}" if by else ""
    found += f"; without {'; '.join(missing)}" if missing else ""
    if open_ones:
        yield Finding(
            "grader walls",
            "note",
            f"{found}; not kept from: {', '.join(open_ones)}",
            "Answers that are no formula are still refused; where graders are your own, run them in "
            "a container without network.",
        )
    else:
        yield Finding("grader walls", "ok", found)


def _disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    from pipelines import runs

    folder = runs.runs_folder()
    here = folder if folder.exists() else folder.absolute().parent
    free = shutil.disk_usage(here).free
    writable = os.access(here, os.W_OK)
    yield Finding(
        "runs",
        "ok" if free > NEEDED_DISK and writable else "bad",
        f"{folder.absolute()}, {size(free)} free" + ("" if writable else ", not writable"),
        "" if free > NEEDED_DISK and writable else "Set VPPO_RUNS to a folder with room.",
    )
    offline = ", offline (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else ""
    yield Finding("hub cache", "ok", f"{HF_HUB_CACHE}{offline}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _system,
    _packages,
    _plain_transformers,
    _device,
    _model,
    _graders,
    _grader_walls,
    _disk,
)
