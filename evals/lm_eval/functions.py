"""What tasks/*.yaml call: the questions, prompts, images and scores of this package, for lm-eval.

Importing this also tells lm-eval's registry of the model ``vppo`` (evals/lm_eval/model.py).
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import lm_eval.models  # noqa: F401  (a registry that already knows a model never learns lm-eval's own)
from datasets import Dataset
from lm_eval.api.registry import model_registry
from PIL import Image

from evals.benchmarks.base import Benchmark
from evals.benchmarks.questions import gather, groups, questions_step, read_questions
from evals.benchmarks.table import find
from evals.numbers.statistics import Interval, fraction
from evals.profiles import PUBLISHED
from pipelines.config.imports import one_command
from pipelines.config.settings import load
from pipelines.disk.records import Sample, SampleTable
from pipelines.grading.answer import extract_answer
from pipelines.grading.graders import GraderPool
from pipelines.grading.reward import outcomes_of, published_outcomes
from pipelines.model.images import as_shown
from pipelines.model.prompts import IMAGE, messages
from pipelines.model.torchvision_ops import ensure_importable
from pipelines.watch import Silent

DATA_DIR = "VPPO_DATA_DIR"
"""The environment variable that names a folder with local copies of the benchmarks."""

log = logging.getLogger(__name__)
ensure_importable()  # lm-eval's own models of images import torchvision
if "vppo" not in model_registry:
    model_registry.register("vppo", target="evals.lm_eval.model:VppoModel")


@dataclass(frozen=True)
class Loaded:
    """A task that was loaded: its questions, how they are asked, and who decides.

    ``benchmark`` is None for a test set of one's own.
    """

    table: SampleTable
    benchmark: Benchmark | None
    instruction: str
    graders: tuple[str, str]


_loaded: dict[str, Loaded] = {}  # by what their docs name them


def loaded(doc: Mapping[str, Any]) -> Loaded:
    """The task of a document."""
    return _loaded[doc["questions"]]


@one_command()
def dataset(
    benchmark: str,
    data_dir: str | None = None,
    grader: str = "mathruler",
    settings: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, Dataset]:
    """The questions of a benchmark, without their images, as lm-eval's split ``test``.

    Args:
        data_dir: a folder with local copies (``--metadata data_dir=...``); none: ``VPPO_DATA_DIR``'s,
            or the hub.
        grader: of a benchmark or test set of one's own, the one that decides ``avg@8``.
        settings: of the same, what a config has of it (evals/lm_eval/tasks_folder.py).

    Raises:
        UserError: the questions cannot be had.
    """
    where = data_dir or os.environ.get(DATA_DIR)
    config = load(None, [f"eval.data_dir={json.dumps(where)}"] if where else [], base=settings)
    gather(config, [benchmark], Silent())
    step, found = questions_step(benchmark, config), find(benchmark, config)[0]
    for warning in (step.manifest() or {"metrics": {"warnings": []}})["metrics"]["warnings"]:
        log.warning(warning)
    key = f"{benchmark} {step.key}"
    table = read_questions(step)
    instruction = config.data.instruction if settings else PUBLISHED.instruction
    public = found if isinstance(found, Benchmark) else None
    _loaded[key] = Loaded(table, public, instruction, (grader, "math-verify"))
    columns = ("id", "problem", "answer", "kind", "metadata")
    rows = [{column: getattr(row, column) for column in columns} for row in table.without_images()]
    return {"test": Dataset.from_list([{"benchmark": benchmark, "questions": key} | r for r in rows])}


def sample(doc: Mapping[str, Any]) -> Sample:
    """The question that a document stands for, with its images."""
    return loaded(doc).table.by_id(doc["id"])


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The whole prompt with its instruction; ``<image>`` stands where each image goes."""
    (turn,) = messages(sample(doc), loaded(doc).instruction)
    return "".join(IMAGE if part["type"] == "image" else part["text"] for part in turn["content"])


def doc_to_image(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The images. lm-eval holds those of all questions at once, so they stay compressed if they can."""
    return [_image(data) for data in sample(doc).images]


def _image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(as_shown(data)))  # decoded when it is first looked at


def process_results(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, Any]:
    """One question's metrics, from all its responses: by our verdict, and as published.

    The bounds of the interval need every question and its cluster: ``low`` and ``high`` get them.
    """
    (responses,) = results
    row = Sample(doc["id"], doc["problem"], [], doc["answer"], doc["kind"], doc["metadata"])
    answers = [extract_answer(response) for response in responses]
    owners, whole = [row] * len(answers), [False] * len(answers)
    ruler, verify = (
        [mark == "correct" for mark in outcomes_of(answers, owners, whole, _pool(), grader)]
        for grader in loaded(doc).graders
    )
    published = published_outcomes(responses, owners, whole, _pool())
    benchmark = loaded(doc).benchmark
    accuracy = sum(ruler) / len(ruler)
    cluster = (groups(row).get(benchmark.cluster) if benchmark else "") or f"alone {row.id}"
    item = [accuracy, cluster, benchmark.title if benchmark else ""]
    return {
        "avg@8": accuracy,
        "avg@8_low": item,
        "avg@8_high": item,
        "avg@8_as_published": published.count("correct") / len(published),
        "pass@8": float(any(ruler)),
        "avg@8_math-verify": sum(verify) / len(verify),
    }


def low(items: Sequence[tuple[float, str, str]]) -> float:
    """The lower end of the 95 % interval of avg@8, from (accuracy, cluster, stream) per question."""
    return _interval(items).low


def high(items: Sequence[tuple[float, str, str]]) -> float:
    """The upper end of the same."""
    return _interval(items).high


def _interval(items: Sequence[tuple[float, str, str]]) -> Interval:
    accuracies, clusters, streams = zip(*items, strict=True)
    return fraction(accuracies, clusters, streams[0])


@cache
def _pool() -> GraderPool:
    reward = load().reward
    pool = GraderPool(reward.workers, reward.deadline)
    atexit.register(pool.close)
    return pool
