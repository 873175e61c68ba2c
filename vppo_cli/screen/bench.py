"""What ``vppo bench`` measured, a table a part."""

from __future__ import annotations

from typing import Any

from vppo_cli.screen import display


def _passes(part: dict[str, Any]) -> None:
    at = part["lengths"]
    _head(
        "passes",
        part,
        f"{at['image']} image tokens, {at['samples']} responses of "
        f"{at['response']} tokens, {at['prompts']} prompts a pass",
    )
    names = {"old_logp": "old log-probs", "scoring": "and scoring", "update": "update", "all": "all"}
    rows = [("", "plain rows", "shared prefix", "faster", "operations", "bytes", "of peak")]
    for key, name in names.items():
        seconds, work = part["seconds"][key], part["work"].get(key)
        cells = (
            (f"{work['operations'] / 1e9:,.1f} G", f"{work['bytes'] / 1e9:,.2f} GB", f"{part['of_peak'][key]:.0%}")
            if work
            else ()
        )
        rows.append(
            (name, f"{seconds['plain']:.2f} s", f"{seconds['shared']:.2f} s", f"{part['faster'][key]:.1f} x", *cells)
        )
    display.columns(rows, indent=display.LABEL)
    display.line("", f"of peak: of {part['peak_flops'] / 1e9:,.0f} GFLOP/s, a large matrix product here")


def _curve(part: dict[str, Any]) -> None:
    _head("curve", part, "score + update with shared_prefix=auto, times faster than plain rows")
    places = sorted({c["place"] for c in part["cells"]})
    by_place = {(c["samples"], c["place"]): c for c in part["cells"]}
    rows = [("G", *(f"{p} tokens" for p in places))]
    for samples in sorted({c["samples"] for c in part["cells"]}):
        rows.append((str(samples), *(f"{by_place[samples, p]['auto']:.2f}" for p in places)))
    display.columns(rows, indent=display.LABEL)


def _scoring(part: dict[str, Any]) -> None:
    _head("scoring", part, f"{part['work']['image_tokens']} image tokens, a whole step")
    seconds = part["seconds"]
    display.line(
        "",
        f"with exact scoring {seconds['with']:.2f} s, without {seconds['without']:.2f} s: it adds {part['added']:.1%}",
    )
    display.line("", f"DAPO's, which needs none {seconds['dapo']:.2f} s, {part['dapo']:.2f} of that without")


def _streamed(part: dict[str, Any]) -> None:
    _head("streamed", part, f"exact KL, and log-probs with gradient; V = {part['vocabulary']:,}")
    rows = [("", "tokens", "seconds", "peak beside the inputs", "logits would be", "gap")]
    for row in part["rows"]:
        rows.append(
            (
                row["way"].replace("_", " "),
                f"{row['tokens']:,}",
                f"{row['seconds']:.2f}",
                f"{row['extra_bytes'] / 2**30:.2f} GiB",
                f"{row['logits_bytes'] / 2**30:.2f} GiB",
                f"{row['gap']:.1e}" if "gap" in row else "",
            )
        )
    display.columns(rows, indent=display.LABEL)


def _vision(part: dict[str, Any]) -> None:
    _head(
        "vision", part, "times faster: windows in one call than in a loop, patches by a product than by a convolution"
    )
    rows = [("patches", "", "windows", "patches")]
    for row in part["rows"]:
        rows.append(
            (
                f"{row['patches']:,}",
                "with gradients" if row["gradients"] else "forward",
                f"{row['windows_faster']:.2f}",
                f"{row['embedding_faster']:.2f}",
            )
        )
    display.columns(rows, indent=display.LABEL)


def _bfloat16(part: dict[str, Any]) -> None:
    _head("bfloat16", part, f"what is beside a result in a pass; {part['prompts']} prompts, or each alone")
    rows = [("", *part["types"])]
    columns = [_moved(found) for found in part["types"].values()]
    rows += [(name, *(column[name] for column in columns)) for name in columns[0]]
    display.columns(rows, indent=display.LABEL)


def _moved(found: dict[str, Any]) -> dict[str, str]:
    """What one compute type is shown with."""
    sampled, scored = found["sampling"], found["scoring"]
    first = "none"
    if sampled["differ"]:
        first = f"{sampled['first_least']}, {sampled['first_median']:.0f}"
    rows = {
        "responses sampled otherwise": f"{sampled['differ']} of {sampled['responses']}",
        "  first other token: least, median": first,
    }
    for of, name in (("logp", "log-probs differ"), ("kl", "exact KL differs")):
        mean, largest = scored[f"{of}_mean"], scored[f"{of}_max"]
        rows[f"{name}: mean, largest, nats"] = f"{mean:.1e}, {largest:.1e}"
    rows["kept tokens that are others"] = f"{scored['kept_others_share']:.2%}"
    rows["first update's |ratio - 1|: mean ratio's, largest"] = ""
    for passes, ratio in found["ratios"].items():
        rows[f"  scored in {passes}"] = f"{abs(ratio['mean'] - 1):.1e}, {ratio['furthest']:.1e}"
    return rows


def _trl(part: dict[str, Any]) -> None:
    work, seconds = part["work"], part["seconds"]
    _head("trl", part, f"{work['prompts']} prompts x {work['samples']}, {work['max_new_tokens']} tokens at most")
    stages = ", ".join(f"{name} {value:.2f}" for name, value in part["stages"].items())
    display.line("", f"VPPO step {seconds['vppo']:.2f} s ({stages})")
    display.line(
        "",
        f"TRL GRPO step {seconds['trl']:.2f} s: VPPO takes {1 / part['faster']:.0%} of it, "
        f"and {part['memory']:.0%} of its peak memory",
    )


SHOWN = {
    "passes": _passes,
    "curve": _curve,
    "scoring": _scoring,
    "streamed": _streamed,
    "vision": _vision,
    "bfloat16": _bfloat16,
    "trl": _trl,
}


def _head(name: str, part: dict[str, Any], text: str) -> None:
    display.line(name, f"{part['shape']}, {part['device']}, {part['date']}: {text}")
