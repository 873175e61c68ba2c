"""Keys that folders on people's disks have: they stay, whatever the code becomes.

``frozen_keys.json`` was written by commit 1ab4b85 (``python tests/test_frozen_keys.py`` there). A key
may only change with a VERSION, said in the changelog, or where it did not hold all that decides.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from evals.benchmarks import questions as benchmark_questions
from evals.benchmarks.questions import questions_step
from pipelines import chain
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.objectives.table import needs
from pipelines.prepare import rows as source_rows

FILE = Path(__file__).with_name("frozen_keys.json")
DIGITS = 16
"""Of a key's 64, kept in the list."""

MORE = {
    "tiny.yaml": (
        "update.lora_rank=8",
        "update.engine=deepspeed",
        "update.freeze_vision=true",
        "rollout.engine=vllm",
        "model.attention=eager",
        "data.source=some/where",
        "seed=1",
        "data.glyphs.guessable=0.5",
        "update.tis_cap=2",
        "eval.instruction=Think.",
        "checkpoint.validation_samples=1",
        "reward.grader=math-verify",
        "mode=reference",
    ),
    "ci.yaml": ("eval.benchmarks=[all, mmmu_val]", "update.kl_coefficient=0.1", "score.looks=0"),
    "qwen2_5_vl_7b.yaml": ("data.revision=abc", "model.revision=def", "eval.profile=matched"),
}
"""Shipped config -> settings, one at a time, whose keys are frozen too."""

REFERENCE = {
    "score": {"estimator": "k3", "perturbation": "raw_black", "mask_per": "response"},
    "update": {"shaping_statistics": "micro_batch", "entropy_estimator": "sampled", "loss_average": "token"},
}
"""What a mode set that is no more; ``tiny_reference.yaml`` was the embedded default with it."""
YOUNGER = ("tiny_published.yaml", "qwen2_5_vl_7b_published.yaml", "qwen2_5_vl_32b_published.yaml")


def asked() -> list[tuple[str, str]]:
    """Every config that was shipped as it is, and some with one more setting."""
    here = {path.name for path in settings.shipped_config(".").glob("*.yaml")}
    shipped = sorted({*here, "tiny_reference.yaml"} - {*YOUNGER})
    more = [(name, setting) for name, several in MORE.items() for setting in several]
    return [(name, "") for name in shipped] + more


def asked_then() -> Config:
    """The embedded default as a run has it that began as ``mode: reference``."""
    values = settings.load(None).model_dump(mode="json")
    for section, fields in REFERENCE.items():
        values[section] |= fields
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(values | {"mode": "reference"}))
        return settings.load(file, stored=True)


def keys(name: str, setting: str) -> dict[str, str]:
    """Step -> key: of all stages, at the first steps and the last, and of every evaluation."""
    config = (
        asked_then()
        if "reference" in name + setting
        else settings.load(settings.shipped_config(name), [setting] if setting else [])
    )
    if not needs(config):  # scores held S all the same: runs begun then have it in their config.yaml
        config = settings.load(settings.shipped_config(name), ["score.store=perception"])
    run, last = Chain(config, Path("run")), config.run.steps
    steps = {"prepare": run.prepare, "model": run.model}
    for index in (1, 2, last):
        for stage in ("rollout", "score", "update"):
            steps[f"{stage} {index}"] = getattr(run, stage)(index)
    steps[f"checkpoint {last}"] = run.checkpoint(last)
    for benchmark in (*run.benchmarks, "validation"):
        steps[f"{benchmark} 0"] = run.eval(0, benchmark)
        cell = run.cell(last, benchmark)
        steps[f"{benchmark} {last}"] = cell.results
        if benchmark not in ("glyphs", "validation"):
            steps[f"{benchmark} questions"] = questions_step(benchmark, config)
    named = {label: step.key[:DIGITS] for label, step in steps.items()}
    journal = run.cell(0, "validation").journal.stem
    return named | {"journal": journal.rpartition("-")[2]}


def label(name: str, setting: str) -> str:
    return f"{name} {setting}".strip()


@pytest.mark.parametrize(("name", "setting"), asked(), ids=lambda text: text or "as-it-is")
def test_a_key_is_what_it_was(name, setting, monkeypatch):
    """But for the readers of rows from outside, for what a policy computes, and for grading, whose versions
    went up since (see the changelog). Journals are found under the keys they had."""
    frozen = json.loads(FILE.read_text())[label(name, setting)]
    now = keys(name, setting)
    monkeypatch.setattr(source_rows, "READER", 1)
    monkeypatch.setattr(benchmark_questions, "READING", 1)
    monkeypatch.setitem(chain.VERSIONS, "grading", 1)
    for computed in ("rollout", "score", "update", "sampling"):
        monkeypatch.setitem(chain.VERSIONS, computed, 2)
    # All but what is not asked any more: one's own data are not evaluated on the embedded questions.
    left_out = {"glyphs 0", "glyphs 30"} if setting == "data.source=some/where" else set()
    assert keys(name, setting) == {k: v for k, v in frozen.items() if k not in left_out}
    assert now["model"] == frozen["model"]
    assert all(now[step] != frozen[step] for step in now if step.startswith(("rollout", "score", "update")))


def test_a_journal_is_found_however_the_rows_are_read(monkeypatch):
    """What is read of a row beside the question (options, golds) leaves what was sampled alone."""
    config = settings.load(None, ["eval.benchmarks=[geo3k]"])

    def keys_now() -> tuple[str, str]:
        cell = Chain(config, Path("run")).cell(0, "geo3k")
        return cell.journal.name, cell.results.key

    journal, results = keys_now()
    monkeypatch.setattr(benchmark_questions, "READING", 1)
    assert keys_now()[0] == journal
    assert keys_now()[1] != results


def test_there_are_enough_of_them():
    frozen = json.loads(FILE.read_text())
    assert len({key for found in frozen.values() for key in found.values()}) >= 40
    assert frozen.keys() == {label(*one) for one in asked()}


if __name__ == "__main__":
    FILE.write_text(json.dumps({label(*one): keys(*one) for one in asked()}, indent=1) + "\n")
