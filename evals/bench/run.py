"""Run the parts asked for, and write ``bench.json`` and ``bench.png``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evals.bench import passes, steps, streamed
from evals.bench.measure import device
from evals.bench.workload import SHAPES
from pipelines.errors import UserError
from pipelines.step import write_atomic

Say = Callable[[str], None]
PARTS: dict[str, Callable[[str, int, Path, Say], dict[str, Any]]] = {
    "passes": passes.passes,
    "curve": passes.curve,
    "scoring": steps.scoring,
    "streamed": streamed.compare,
    "trl": steps.against_trl,
}
"""Part -> (shape, repeats, folder, say) -> its figures."""
ON_TINY = ("curve", "scoring", "trl")


def bench(
    parts: Sequence[str], shape: str, repeats: int, threads: int, out: Path, say: Say
) -> dict[str, Any]:
    """Measure; what an earlier call measured of other parts in the same folder is kept.

    Raises:
        UserError: a part or shape is unknown, or cannot be measured here.
    """
    import torch

    from pipelines.torchvision_ops import ensure_importable

    ensure_importable()
    for part in parts:
        if part not in PARTS:
            near = get_close_matches(part, PARTS, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(f"bench {part}", "no such part.", f"{hint}Known: {' '.join(PARTS)}.")
        if shape != "tiny" and part in ON_TINY:
            raise UserError(
                f"bench {part}", f"is measured with the tiny model, not {shape}.", "Drop --shape."
            )
    if shape not in SHAPES:
        raise UserError(f"--shape {shape}", "no such shape.", f"Known: {' '.join(SHAPES)}.")
    if shape != "tiny" and not torch.cuda.is_available():
        raise UserError(f"--shape {shape}", "needs a GPU, and none is here.", "Try --shape tiny.")
    if "trl" in parts:
        steps.need_trl()
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "bench.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for part in parts:
        figures = PARTS[part](shape, repeats, out, say)
        found[part] = figures | {
            "shape": shape, "repeats": repeats, "device": device(),
            "date": time.strftime("%Y-%m-%d"), "torch": version("torch"),
        }  # fmt: skip
        write_atomic(file, json.dumps(found, indent=1))
    return found
