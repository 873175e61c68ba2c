"""One part of ``make gpu``, in a process of its own, which pipelines/bench/gpu/__main__.py starts.

    python -m pipelines.bench.gpu.part probe --shape tiny --device cpu --out DIR --work DIR

A part is a list of findings, each a function of the place that returns figures by name. They are written
after each, and one that fails costs no other.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from pipelines.bench.gpu.place import Figures, Findings, NotMeasured, Place
from pipelines.disk.step import write_atomic
from pipelines.model import determinism
from pipelines.model.torchvision_ops import ensure_importable

PARTS = ("probe", "resume", "bits", "profile", "stages")


def measure(findings: Findings, written: Callable[[dict[str, Figures]], None]) -> None:
    """Measure one after another; what was found so far is written after each.

    What cannot be measured has ``not measured`` for its figures, what failed ``failed``.
    """
    found: dict[str, Figures] = {}
    for name, measured in findings:
        begun = time.perf_counter()
        try:
            found[name] = measured()
        except NotMeasured as error:
            found[name] = {"not measured": str(error)}
        except Exception as error:  # whatever it is, the others are measured
            traceback.print_exc()
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{time.perf_counter() - begun:6.1f} s  {name}", flush=True)
        written(found)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    """Measure one part, and write ``NAME.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    place = Place(asked.shape, torch.device(asked.device), asked.out, asked.work)
    if place.cuda and not torch.cuda.is_available():
        sys.exit("torch finds no GPU here; --shape tiny --device cpu tries the command without one")
    determinism.settle(place.device)
    determinism.warning()
    ensure_importable()
    head = {
        "part": asked.part,
        "shape": place.shape,
        "device": place.name,
        "date": time.strftime("%Y-%m-%d"),
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    file = place.out / f"{asked.part}.json"

    def written(found: dict[str, Figures]) -> None:
        write_atomic(file, json.dumps(head | {"found": found}, indent=1))

    written({})
    findings: Findings = importlib.import_module(f"pipelines.bench.gpu.{asked.part}").findings(place)
    measure(findings, written)


if __name__ == "__main__":
    main()
