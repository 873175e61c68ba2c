"""The model ``vppo`` of lm-eval: this package's rollout engines, or the journal of an evaluation.

The repeats of a question become one call of the engine, with the names that ``vppo eval`` seeds its
samples by: with the same settings, both sample the same responses, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import LM
from tqdm import tqdm

from evals.journal import Entry, prompt_digest, read_journal
from evals.lm_eval.functions import doc_to_text, loaded, sample
from evals.profiles import PUBLISHED, PromptSettings, evaluation
from pipelines.config import settings
from pipelines.config.schema import Config
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model import determinism
from pipelines.model.load import load_policy
from pipelines.model.policy import Policy
from pipelines.model.ragged import batches
from pipelines.model.sampling import Sampling
from pipelines.rollout.engine import Engine, LiveEngine
from pipelines.rollout.engines import find_engine

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

GENERATION = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_gen_toks": "max_new_tokens"}
"""lm-eval's generation settings, and what they are called here."""


class VppoModel(LM):
    """Answers the tasks of evals/lm_eval/tasks.

    Args:
        pretrained: a model folder or hub id, or ``tiny``; not needed with a journal.
        journal: replay this journal of ``vppo eval`` without a model: a file, or a folder with one
            ``<benchmark>-*.jsonl``.
        config: a config file to start from, such as a run's; none: the embedded default.
        profile: ``published`` or ``matched``.
        max_new_tokens: longest response, in tokens.
        seed: of the samples.
        batch_size: questions generated together, above 1 (which lm-eval gives if it was not told).
        device: as torch names it. lm-eval gives cuda:0 if it was not told; without a GPU that is not
            used.
        data_dir: for the tasks, which get the model's arguments too.
        max_batch_size, trust_remote_code: lm-eval gives them; not used.
        overrides: any other setting by its dotted name, such as ``rollout.engine``.

    Raises:
        UserError: neither model nor journal, or both; no such setting.
    """

    MULTIMODAL = True
    tokenizer_name = "vppo"  # names lm-eval's cache of requests

    def __init__(
        self,
        pretrained: str | None = None,
        journal: str | None = None,
        config: str | None = None,
        profile: str | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        batch_size: int | str | None = None,
        device: str | None = None,
        data_dir: str | None = None,
        max_batch_size: Any = None,
        trust_remote_code: Any = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (journal is None):
            raise UserError(
                "--model vppo",
                "needs pretrained= or journal=, one of the two.",
                "Such as --model_args pretrained=tiny.",
            )
        given: dict[str, Any] = {
            "model.path": pretrained and json.dumps(pretrained),
            "eval.profile": profile,
            "eval.max_new_tokens": max_new_tokens,
            "seed": seed,
            "run.device": None if "cuda" in str(device) and not torch.cuda.is_available() else device,
        }
        if str(batch_size).isdigit() and int(str(batch_size)) > 1:
            given["eval.batch_prompts"] = batch_size
        given |= overrides
        self.config: Config = settings.load(
            Path(config) if config else None, [f"{name}={value}" for name, value in given.items() if value is not None]
        )
        self.journal = Path(journal) if journal else None
        self._engines: dict[tuple[Any, ...], Engine] = {}
        self._live: LiveEngine | None = None
        self._journals: dict[str, tuple[Path, dict[str, list[Entry]]]] = {}

    # -- what lm-eval calls ----------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """A response to every request, in order.

        Raises:
            UserError: a request that is not of evals/lm_eval/tasks, or asks for what the engines do not do;
                or the journal has no answer to it.
        """
        places: dict[tuple[str, str, PromptSettings], list[int]] = {}
        for place, request in enumerate(requests):
            doc = _doc(request)
            self._check_asked(doc)
            key = (doc["benchmark"], doc["id"], self._asking(doc["benchmark"], request.args[1]))
            places.setdefault(key, []).append(place)
        # Questions that are sampled alike go into one batch.
        alike: dict[tuple[str, PromptSettings, int], list[list[int]]] = {}
        for (benchmark, _, asking), own in places.items():
            alike.setdefault((benchmark, asking, len(own)), []).append(own)
        found = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Responses") as bar:
            for (benchmark, asking, count), groups in alike.items():
                for part in batches(groups, self.config.eval.batch_prompts):
                    rows = [sample(requests[own[0]].doc) for own in part]
                    for own, texts in zip(part, self._responses(benchmark, asking, count, rows), strict=True):
                        for place, text in zip(own, texts, strict=True):
                            found[place] = text
                        bar.update(count)
        return found

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the tasks sample."""
        raise NotImplementedError("--model vppo generates; it has no loglikelihood.")

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Not offered: the tasks sample."""
        raise NotImplementedError("--model vppo generates; it has no loglikelihood_rolling.")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text as it is: the engines apply the model's own template, asked to or not."""
        return "".join(turn["content"] for turn in chat_history)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval's results say of the model."""
        return {"profile": self.config.eval.profile, "seed": self.config.seed}

    # -- how it answers --------------------------------------------------------------------------

    def _check_asked(self, doc: Mapping[str, Any]) -> None:
        """See that the settings know a test set of one's own, which is asked as their training asks.

        Raises:
            UserError: they do not, or ask it otherwise than the task.
        """
        name = doc["benchmark"]
        if loaded(doc).benchmark is not None:
            return
        known = name in self.config.eval.sources
        if not known or evaluation(self.config, name).asking.instruction != loaded(doc).instruction:
            raise UserError(
                f"vppo_{name}",
                "the settings of --model vppo "
                + ("give another instruction than the task has." if known else "have no such test set."),
                "Give config=FILE in --model_args: the one that the task was written from.",
            )

    def _asking(self, benchmark: str, generation: Mapping[str, Any]) -> PromptSettings:
        """The settings' way of asking; what ``--gen_kwargs`` changed goes before it."""
        unknown = set(generation) - {*GENERATION, "until", "do_sample"}
        greedy = not generation.get("do_sample", True) or generation.get("temperature") == 0
        if unknown or greedy or generation.get("until"):
            raise UserError(
                f"--gen_kwargs {' '.join(f'{k}={v}' for k, v in generation.items())}",
                f"--model vppo samples by {', '.join(GENERATION)} only.",
                "Leave the others out; do_sample is true, temperature above 0, until empty.",
            )
        asking = evaluation(self.config, benchmark).asking
        changes = {
            ours: generation[theirs]
            for theirs, ours in GENERATION.items()
            if theirs in generation and generation[theirs] != getattr(PUBLISHED, ours)
        }
        return replace(asking, **changes)

    def _responses(self, benchmark: str, asking: PromptSettings, count: int, rows: Sequence[Sample]) -> list[list[str]]:
        if self.journal:
            return [self._replayed(benchmark, asking, count, row) for row in rows]
        sampling = Sampling(
            asking.temperature, asking.top_p, asking.top_k, asking.max_new_tokens, count, self.config.seed
        )
        names = [(benchmark, row.id) for row in rows]
        generated = self._engine(asking).generate(list(rows), names, sampling)
        return [[response.text for response in group] for group in generated]

    def _engine(self, asking: PromptSettings) -> Engine:
        shown = asking.images
        if shown not in self._engines:
            policy = self._policy.asked(asking)
            engine = self._live or find_engine(self.config.rollout.engine)(policy)
            if isinstance(engine, LiveEngine):  # of which a process has one
                self._live, engine = engine, engine.view(policy)
            self._engines[shown] = engine
        return self._engines[shown]

    @cached_property
    def _policy(self) -> Policy:
        if self.config.run.threads:
            torch.set_num_threads(self.config.run.threads)
        determinism.warning()  # as vppo eval does
        return load_policy(self.config).spread()

    def _replayed(self, benchmark: str, asking: PromptSettings, count: int, row: Sample) -> list[str]:
        path, journal = self._journal(benchmark)
        entries = journal.get(row.id, [])[:count]
        if len(entries) < count:
            raise UserError(
                str(path),
                f"has {len(entries)} of {count} responses to {row.id}.",
                "Let vppo eval finish first, or give --limit as there.",
            )
        if any(entry.prompt != prompt_digest(row, asking) for entry in entries):
            raise UserError(
                str(path),
                f"was asked something else at {row.id}: text, images or pixel limits differ.",
                "Give the profile, settings and data that it was sampled with.",
            )
        return [entry.response for entry in entries]

    def _journal(self, benchmark: str) -> tuple[Path, dict[str, list[Entry]]]:
        if benchmark not in self._journals:
            path = self.journal
            assert path is not None
            found = sorted(path.glob(f"{benchmark}-*.jsonl")) if path.is_dir() else [path]
            if len(found) != 1 or not found[0].is_file():
                raise UserError(
                    f"journal={path}",
                    f"holds {len(found)} journals of {benchmark}; one is needed." if path.is_dir() else "no such file.",
                    "It is in eval/<step>/journals of a run's folder, named <benchmark>-<key>.jsonl.",
                )
            self._journals[benchmark] = found[0], read_journal(found[0])
        return self._journals[benchmark]


def _doc(request: Instance) -> Mapping[str, Any]:
    """The document of a request, if the request is what evals/lm_eval/tasks makes of it."""
    doc = request.doc
    if not {"benchmark", "questions", "id"} <= set(doc):
        raise UserError(
            f"{request.task_name}",
            "is not a task of this package.",
            "--model vppo answers those of evals/lm_eval/tasks; use lm-eval's own models for others.",
        )
    if request.args[0] != doc_to_text(doc):
        raise UserError(
            f"{request.task_name}",
            "the prompt is not the task's own.",
            "Leave out --system_instruction, --num_fewshot and the like.",
        )
    return doc
