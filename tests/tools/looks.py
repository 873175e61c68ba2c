"""Second views for a run's steps, in the form of ``looks.parquet``: what the viewer has to show."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipelines.disk.records import Look, schema
from vppo_cli.report.source import RunSource, vocabulary


def half_black(image: bytes) -> bytes:
    """The image with its left half black."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width // 2, picture.height), fill="black")
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def write_looks(source: RunSource, step: int, groups: int = 2) -> Path:
    """Write looks.parquet beside a step's scores, for its first groups; log-probs from the scores.

    The second view's probability of a token is e^-perception of the first's, so that one can be told
    from the other; the alternatives are the token itself and two that hold markup.
    """
    from pipelines.disk.records import SampleTable

    rollouts, scores = (table.to_pylist() for table in source.tables(step))
    samples = SampleTable(source.chain.prepare.path / "train.parquet")
    words = vocabulary(source.chain)
    assert words is not None
    rows = []
    for group, scored in list(zip(rollouts, scores, strict=True))[:groups]:
        images = samples.by_id(group["sample_id"]).images
        tokens = [[words.text(t) for t in ids] for ids in group["response_ids"]]
        pairs = [list(zip(*found, strict=True)) for found in zip(scored["old_logp"], scored["perception"], strict=True)]
        row: dict[str, Any] = {
            "sample_id": group["sample_id"],
            "position": group["position"],
            "images": images,
            "perturbed_images": [[half_black(image) for image in images]],
            "tokens": tokens,
            "logp": scored["old_logp"],
            "logp_perturbed": [[p - s for p, s in response] for response in pairs],
        }
        for name in ("top", "top_perturbed"):
            row[name] = [[[text, "</script>", "<b>"] for text in texts] for texts in tokens]
        for name in ("top_p", "top_perturbed_p"):
            row[name] = [[[math.exp(p), 0.01, 0.001] for p, _ in response] for response in pairs]
        for name in ("top_q", "top_perturbed_q"):
            row[name] = [[[math.exp(p - s), 0.02, 0.002] for p, s in response] for response in pairs]
        rows.append(row)
    path = source.chain.score(step).path / "looks.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(Look)), path)
    return path
