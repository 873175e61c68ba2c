"""The figures as one picture."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

PLAIN, SHARED, OTHER = "#9aa4ad", "#2b6cb0", "#b7791f"


def plot(found: dict[str, Any], file: Path) -> bool:
    """Draw what was measured; False where matplotlib is not installed or there is nothing to draw."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = {"passes": _passes, "curve": _curve, "streamed": _streamed, "trl": _trl}
    parts = [name for name in drawn if name in found]
    if not parts:
        return False
    across = min(2, len(parts))
    down = -(-len(parts) // across)
    figure, axes = pyplot.subplots(
        down, across, figsize=(4.8 * across, 3.4 * down), squeeze=False, layout="constrained"
    )
    for axis, name in zip_longest(axes.flat, parts):
        if name is None:
            axis.set_visible(False)
            continue
        drawn[name](axis, found[name])
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return True


def _passes(axis: Any, part: dict[str, Any]) -> None:
    names = {"old_logp": "old log-probs", "scoring": "+ scoring", "update": "update"}
    for offset, (way, colour, label) in enumerate(
        (("plain", PLAIN, "plain rows"), ("shared", SHARED, "shared prefix"))
    ):
        places = [i + (offset - 0.5) * 0.38 for i in range(len(names))]
        axis.bar(places, [part["seconds"][n][way] for n in names], 0.36, color=colour, label=label)
    for i, name in enumerate(names):
        top = part["seconds"][name]["plain"]
        axis.annotate(f"{part['faster'][name]:.1f}x", (i, top), ha="center", va="bottom")
    axis.set_xticks(range(len(names)), names.values())
    at = part["lengths"]
    axis.set_title(f"{at['image']} image tokens, G = {at['samples']}", fontsize=10)
    axis.set_ylabel("seconds")
    axis.legend(frameon=False)


def _curve(axis: Any, part: dict[str, Any]) -> None:
    from matplotlib import colormaps

    groups = sorted({cell["samples"] for cell in part["cells"]})
    for i, samples in enumerate(groups):
        cells = [c for c in part["cells"] if c["samples"] == samples]
        colour = colormaps["viridis"](0.9 * i / max(len(groups) - 1, 1))
        prompts = [c["place"] for c in cells]
        axis.plot(prompts, [c["auto"] for c in cells], "o-", color=colour, label=f"G = {samples}")
    axis.axhline(1, color="#888888", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(sorted({c["place"] for c in part["cells"]}))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:.0f}")
        side.set_minor_formatter("")
    axis.set_xlabel("prompt tokens")
    axis.set_ylabel("times faster than plain rows")
    axis.set_title("score + update, 64 response tokens", fontsize=10)
    axis.legend(frameon=False, fontsize=8)


def _streamed(axis: Any, part: dict[str, Any]) -> None:
    rows = part["rows"]
    names = [f"{r['way'].replace('_', ' ')}\n{r['tokens']:,} tokens" for r in rows]
    colours = [SHARED if r["way"].startswith("streamed") else PLAIN for r in rows]
    axis.barh(names[::-1], [r["extra_bytes"] / 2**30 for r in rows][::-1], color=colours[::-1])
    axis.set_xlabel("peak memory beside the inputs, GiB")
    axis.set_title(f"vocabulary of {part['vocabulary']:,}", fontsize=10)
    axis.tick_params(axis="y", labelsize=8)


def _trl(axis: Any, part: dict[str, Any]) -> None:
    base = 0.0
    for colour, (name, seconds) in zip((SHARED, OTHER, "#4a9c7d"), part["stages"].items(), strict=False):
        axis.bar(["vppo"], [seconds], bottom=base, color=colour, label=name)
        base += seconds
    axis.bar(["TRL GRPO"], [part["seconds"]["trl"]], color=PLAIN)
    axis.set_ylabel("seconds a step")
    axis.set_title(f"tiny.yaml: {part['faster']:.2f}x as fast", fontsize=10)
    axis.legend(frameon=False)
