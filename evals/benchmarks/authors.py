"""The authors' own evaluation files: questions as chat messages, of any of their benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Question, Where, as_list, as_text
from pipelines.model.images import Unusable
from pipelines.prepare.rows import kind_of

_INSTRUCTION = "you first think"
"""How the authors' instruction begins (their ``math_format_perception.jinja``), in lower case."""

LONGEST_INSTRUCTION = 400
"""Characters from there to the end of the question; what is longer is not an instruction."""


def authors(raw: Mapping[str, Any], where: Where) -> Question | None:
    """A row of the authors' evaluation files: chat messages, the last of them the gold.

    Their instruction at the end of the question is taken off: the runner adds its own.

    Source: PAPO-Eval's ``data/dataset_info.json`` (columns messages and images; tags role, content;
    user asks, assistant has the gold), which VPPO's README names as its evaluation.
    """
    said: dict[str, str] = {}
    for message in as_list(raw["messages"]):
        if not isinstance(message, Mapping):
            raise Unusable("no question", "a message is not an object")
        said[as_text(message.get("role"))] = as_text(message.get("content"))
    if "user" not in said or not said.get("assistant", "").strip():
        raise Unusable("no question", f"messages of {', '.join(said) or 'nobody'}")
    answer = said["assistant"].strip()
    problem = without_instruction(said["user"])
    name = as_text(raw.get("id")) or f"row-{where.row}"
    return Question(name, problem, as_list(raw["images"]), answer, kind_of(answer))


def without_instruction(text: str) -> str:
    """The question without the authors' instruction to think first and to box the answer."""
    start = text.lower().rfind(_INSTRUCTION)
    return text if start < 0 or len(text) - start > LONGEST_INSTRUCTION else text[:start].rstrip()
