"""Run the parts asked for, and write ``bench.json`` and ``bench.png``."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.bench import bfloat16, passes, steps, streamed, vision
from pipelines.bench.measure import device
from pipelines.bench.workload import SHAPES
from pipelines.disk.step import write_atomic
from pipelines.errors import UserError

Say = Callable[[str], None]
PARTS: dict[str, Callable[[str, int, Path, Say], Iterator[dict[str, Any]]]] = {
    "passes": passes.passes,
    "curve": passes.curve,
    "scoring": steps.scoring,
    "streamed": streamed.compare,
    "vision": vision.compare,
    "bfloat16": bfloat16.compare,
    "trl": steps.against_trl,
}
"""Part -> (shape, repeats, folder, say) -> its figures so far, again and again; at last all of them."""
ON_TINY = ("curve", "scoring", "vision", "bfloat16", "trl")


def bench(parts: Sequence[str], shape: str, repeats: int, threads: int, out: Path, say: Say) -> dict[str, Any]:
    """Measure; what an earlier call measured of other parts in the same folder is kept.

    Figures are written as they come, as ``PART, incomplete`` until a part is done: what fails later, for
    want of memory say, loses none.

    Raises:
        UserError: a part or shape is unknown, or cannot be measured here.
    """
    import torch

    from pipelines.model.torchvision_ops import ensure_importable

    ensure_importable()
    for part in parts:
        if part not in PARTS:
            near = get_close_matches(part, PARTS, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(f"bench {part}", "no such part.", f"{hint}Known: {' '.join(PARTS)}.")
        if shape != "tiny" and part in ON_TINY:
            raise UserError(f"bench {part}", f"is measured with the tiny model, not {shape}.", "Drop --shape.")
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
    at = {
        "shape": shape,
        "repeats": repeats,
        "device": device(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": version("torch"),
    }
    # The streamed pass first: its processes want what this one would still hold of a GPU's memory.
    for part in sorted(parts, key=lambda part: part != "streamed"):
        for figures in PARTS[part](shape, repeats, out, say):
            found[f"{part}, incomplete"] = figures | at
            write_atomic(file, json.dumps(found, indent=1))
        found[part] = found.pop(f"{part}, incomplete")
        write_atomic(file, json.dumps(found, indent=1))
        gc.collect()
        torch.cuda.empty_cache()
    return found
