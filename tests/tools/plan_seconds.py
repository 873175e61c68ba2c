"""How long ``vppo plan`` takes over a list that names many images: the first time, and again.

    python tests/tools/plan_seconds.py --images 40000

Every image is a file of its own, some 20 KB. The second plan is a new process, as after a week.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.contents import YOUNG_S

KINDS = ("jsonl", "csv", "parquet", "folder")


def write_list(kind: str, folder: Path, images: int) -> Path:
    """Images and the list that names them; returns what ``data.source`` has to be."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(images):
        name = f"images/{number:06d}.png"
        (folder / name).write_bytes(os.urandom(20_000))
        rows.append({"problem": f"What is in picture {number}?", "images": name, "answer": "1"})
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    elif kind == "csv":
        lines = ["problem,images,answer", *(",".join(row.values()) for row in rows)]
        (folder / "rows.csv").write_text("\n".join(lines))
    else:
        name = "metadata.jsonl" if kind == "folder" else "rows.jsonl"
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder if kind == "folder" else folder / f"rows.{kind}"


def _computed() -> float:
    """Seconds of CPU that ended processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--kind", choices=KINDS, default="jsonl")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source = write_list(asked.kind, Path(place) / "data", asked.images)
        time.sleep(YOUNG_S + 0.5)
        env = {**os.environ, "XDG_CACHE_HOME": f"{place}/cache", "VPPO_RUNS": f"{place}/runs"}
        command = [
            sys.executable,
            "-m",
            "vppo_cli",
            "plan",
            "--set",
            f"data.source={source}",
            "--set",
            "eval.benchmarks=[validation]",
        ]
        for which in ("first", "second", "third"):
            started, before = time.perf_counter(), _computed()
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
            took, computed = time.perf_counter() - started, _computed() - before
            print(f"{asked.kind}  {which} plan  {took:.2f} s, of which computing {computed:.2f} s")


if __name__ == "__main__":
    main()
