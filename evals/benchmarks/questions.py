"""The questions of benchmarks, gathered once and shared by all runs. Torch-free.

``runs/benchmarks/mathverse-1a2b3c4d/questions.parquet`` holds what the paper's filter keeps, as
``Sample`` rows. The folder is keyed by the hub data set, or by the content of local copies and of
their images; test sets of one's own (``eval.sources``) lie beside it in the same way.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.benchmarks import imported, own_sets
from evals.benchmarks.authors import authors
from evals.benchmarks.base import Benchmark, Question, Where, listed_options
from evals.benchmarks.sources import commit_of_benchmark, find_files, open_files, open_hub
from evals.benchmarks.table import OWN, canonical, find
from evals.numbers.majority import normalise
from pipelines.config.schema import Config
from pipelines.disk import files as disk
from pipelines.disk.lock import file_lock
from pipelines.disk.records import Sample, SampleTable, write_samples
from pipelines.disk.step import MANIFEST, Step, commit, read_manifest
from pipelines.errors import UserError
from pipelines.grading.answer import choice_letters
from pipelines.grading.reward import GOLDS
from pipelines.model.control_tokens import as_text
from pipelines.model.images import ImageTally, Unusable
from pipelines.prepare.extra import listed
from pipelines.prepare.floats import KEY as SHORT_FLOATS
from pipelines.prepare.places import at_home
from pipelines.prepare.rows import ImageReader, Rejected, UniqueNames, check_question, reader_version
from pipelines.prepare.sources import Part, check_once, twice_in
from pipelines.watch import Watch
from pipelines.words import counted

VERSION = 2
"""Raised when the same rows become other questions."""

READING = 2
"""Raised when the same rows are read otherwise: 2 keeps options, several golds, and images named twice.
Journals go on: each of their lines knows what was asked."""

QUESTIONS = "questions.parquet"
REVISION = "revision"
"""Setting of questions from the hub: their commit. Folders made before it was kept have none."""
FOLDER = "benchmarks"
OPTIONS = "options"
"""In a question's metadata: the texts of its options."""
PROGRESS_EVERY = 32


def questions_step(name: str, config: Config) -> Step:
    """The step with a benchmark's questions, whether it is on disk or not.

    Raises:
        UserError: the config has no such benchmark.
    """
    from pipelines.runs import runs_folder  # it imports the chain, and the chain this

    found, part = find(name, config)
    if isinstance(found, Benchmark):
        settings, hub = _public_settings(found, part, config), config.eval.data_dir is None
    else:
        settings, hub = own_sets.settings(name, config), bool(own_sets.hub_of(name, config))
    step = Step(name, None, runs_folder() / FOLDER, VERSION, settings)
    if SHORT_FLOATS in settings and not step.path.is_dir():  # gathered before such numbers were in the key?
        before = {name: value for name, value in settings.items() if name != SHORT_FLOATS}
        then = replace(step, settings=before)
        step = then if then.path.is_dir() else step
    if not hub or REVISION in settings:
        return step
    return _as_gathered(step, "" if isinstance(found, Benchmark) else own_sets.place(name, config))


def _public_settings(benchmark: Benchmark, part: str, config: Config) -> dict[str, Any]:
    read: dict[str, str] = {}
    if config.eval.data_dir is None:
        source = f"hub {benchmark.hub} {' '.join(filter(None, benchmark.subsets))}".strip()
    else:
        try:
            local = find_files(benchmark, config.eval.data_dir)
            source = f"content {local.content(_image_folders(config))}"
            columns = (*benchmark.columns, *benchmark.optional)
            read = local.read(columns) if part else {}  # no benchmark of the package reads such a number as text
        except UserError:  # told when it is gathered: looking at a run must not need its data
            source = "missing"
    settings: dict[str, Any] = {"benchmark": benchmark.name, "source": source, "splits": list(benchmark.splits)}
    settings |= reader_version() | ({"reading": READING} if READING > 1 else {})
    return settings | read | (imported.source(part) if part else {})


def _image_folders(config: Config) -> list[Path]:
    return [at_home(folder) for folder in config.data.image_folders]


def check(name: str, config: Config) -> None:
    """What gathering would refuse, told before: cheap, and without the hub.

    Raises:
        UserError: a local copy is missing; a test set is not there, or lacks a column.
    """
    if questions_step(name, config).manifest() is not None:
        return
    found, _ = find(name, config)
    if not isinstance(found, Benchmark):
        own_sets.check(name, config)
    elif config.eval.data_dir is not None:
        find_files(found, config.eval.data_dir)


def asked_key(questions: Step) -> str:
    """What of a benchmark's questions is in the key of a journal, each of whose lines knows what was asked."""
    settings = {
        name: value
        for name, value in questions.settings.items()
        if name != "reading" and not name.startswith("source of ")
    }
    return replace(questions, settings=settings).key


def _as_gathered(step: Step, place: str) -> Step:
    """The same of the commit that was gathered last, or of a test set's file or folder that is not there any more;
    as it is where none was, or before commits and places were kept.

    Args:
        place: the path that the set is named by; "" for a benchmark.
    """
    made: list[tuple[float, dict[str, Any]]] = []
    if not step.path.is_dir():
        for folder in disk.find(step.parent, f"{step.name}-*[0-9a-f]"):
            if (folder / MANIFEST).is_file():
                manifest = read_manifest(folder)
                then, now = manifest["settings"], step.settings
                others = {name for name in then | now if then.get(name) != now.get(name)}
                of_place = place and manifest["metrics"].get(own_sets.PLACE) == place and others <= own_sets.CONTENT
                if of_place or (then.get(REVISION) and others == {REVISION}):
                    made.append(((folder / MANIFEST).stat().st_mtime, then))
    return replace(step, settings=max(made, key=lambda one: one[0])[1]) if made else step


def gather(config: Config, names: Iterable[str], watch: Watch) -> None:
    """Make the questions of benchmarks that are not on disk yet; those of the run itself are prepared.

    The manifest's metrics are rows, kept, unreadable and warnings (other numbers of rows than
    expected, rows left out, groups that no row has, special tokens pulled apart). Another
    process that gathers the same is waited for.

    Raises:
        UserError: a benchmark cannot be reached, lacks a column, or has no usable row.
    """
    for name in canonical(names, config):
        if name in OWN:
            continue
        step, (found, _) = questions_step(name, config), find(name, config)
        if step.manifest() is not None:
            if not isinstance(found, Benchmark) and own_sets.hub_of(name, config) and REVISION not in step.settings:
                watch.note(f"{name}: {own_sets.place(name, config)} is not there: the questions read from it stand")
            continue
        public = isinstance(found, Benchmark)
        hub = found.hub if isinstance(found, Benchmark) else own_sets.hub_of(name, config)
        if hub and REVISION not in step.settings and not (public and config.eval.data_dir is not None):
            at = commit_of_benchmark(found) if isinstance(found, Benchmark) else own_sets.commit(name, config)
            step = replace(step, settings=step.settings | {REVISION: at})
            watch.note(f"questions of {name}: {hub} at {at}")
        with _lock(step, watch):
            if step.manifest() is None:
                revision = step.settings.get(REVISION)
                with commit(step) as (out, metrics):
                    if isinstance(found, Benchmark):
                        metrics |= _Reader(found, watch).write(out / QUESTIONS, config, revision)
                    else:
                        metrics |= own_sets.write(out / QUESTIONS, name, config, revision, watch)


def read_questions(step: Step) -> SampleTable:
    """The questions of a step, read when asked for.

    Raises:
        UserError: they are not on disk.
    """
    if step.manifest() is None:
        raise UserError(f"{step.name} questions", f"are not on disk ({step.path}).", "Gather them.")
    return SampleTable(step.path / QUESTIONS)


def groups(sample: Sample) -> dict[str, str]:
    """What a question counts under: version, subject, level ..."""
    found = sample.details().get("groups")  # of one's own data, anything
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def options(sample: Sample) -> list[str]:
    """The texts of a choice's options, in the order of their letters; none where they are not known."""
    found = sample.details().get(OPTIONS)  # of one's own data, anything
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else []


@contextlib.contextmanager
def _lock(step: Step, watch: Watch) -> Iterator[None]:
    """Hold the step's lock."""
    path = step.parent / f".{step.path.name}.lock"
    told = f"waiting for another process that reads the questions of {step.name}"
    with file_lock(path, step.name, "", wait=True, tell=lambda _: watch.note(told), over=step.path):
        yield


def _bare(option: str) -> str:
    """An option's text as the gold may write it, too: without braces, signs of degree, and case."""
    text = normalise(option).replace("^{\\circ}", "").replace("^\\circ", "").replace("°", "")
    return "".join(c for c in text if c not in "{} ").casefold()


class _Reader:
    """Turns a benchmark's rows into samples and counts what becomes of them."""

    def __init__(self, benchmark: Benchmark, watch: Watch) -> None:
        self.name, self.watch, self.benchmark = benchmark.name, watch, benchmark
        self.rows = 0
        self.filtered = False  # the authors' files hold only what the filter keeps
        self.reasons: Counter[str] = Counter()
        self.example = ""
        self.tokens = 0  # questions with special tokens of chat models
        self.unlettered = 0  # golds of a choice that name no option
        self.images = ImageTally()
        self._grouped: set[str] = set()
        self._options: dict[str, list[str]] = {}  # group -> what its questions choose from
        self._unique = UniqueNames()
        self._repeats: Counter[str] = Counter()

    def write(self, path: Path, config: Config, revision: str | None) -> dict[str, Any]:
        """Write the questions; returns the metrics."""
        where = config.eval.data_dir
        local = find_files(self.benchmark, where) if where is not None else None
        opened = open_files(local) if local else open_hub(self.benchmark, revision)
        folders = _image_folders(config) if local and local.rows_alone else None
        kept = write_samples(path, self._samples(opened, folders))
        self.watch.progress(f"questions {self.name}", self.rows, self.rows)
        if not kept:
            raise UserError(
                f"benchmark {self.name}",
                f"none of its {counted(self.rows, 'row')} is usable. {self.example}",
                "Check the data set; its images are within its rows, or with its files.",
            )
        warnings = self._warnings(kept)
        for warning in warnings:
            self.watch.note(f"WARNING {warning}")
        unreadable = self.reasons.total()
        return {"rows": self.rows, "kept": kept, "unreadable": unreadable, "warnings": warnings}

    def _warnings(self, kept: int) -> list[str]:
        expected, found = self.benchmark, []
        if self.filtered and kept != (expected.kept or kept):
            found.append(f"{self.name}: {counted(kept, 'question')}, expected {expected.kept}")
        elif not self.filtered and (self.rows, kept) != (expected.rows, expected.kept or kept):
            found.append(
                f"{self.name}: {counted(self.rows, 'row')} before the filter, expected {expected.rows}; "
                f"{kept} after it{f', expected {expected.kept}' if expected.kept else ''}"
            )
        if self.reasons:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common())
            n = self.reasons.total()
            found.append(f"{self.name}: {n} row{'s' * (n > 1)} left out ({reasons}). {self.example}")
        if n := self.tokens:
            found.append(
                f"{self.name}: special tokens of chat models in {n} question{'s' * (n > 1)}, "
                "written apart: <|name|> as < |name| >"
            )
        if n := self.unlettered:
            found.append(f"{self.name}: {n} gold{'s name' if n > 1 else ' names'} no option; compared as text")
        found += [f"{self.name}: {line}" for line in self.images.told()]
        if ungrouped := self._ungrouped():
            found.append(f"{self.name}: {ungrouped}")
        return found

    def _ungrouped(self) -> str:
        """What cannot be told of the questions, since no row has a group; "" where all is known."""
        cluster, breakdowns = self.benchmark.cluster, self.benchmark.breakdowns
        wanted = dict.fromkeys(filter(None, (cluster, *breakdowns)))
        missing = [group for group in wanted if group not in self._grouped]
        lost = []
        if cluster in missing:
            lost.append("intervals take the questions as independent")
            if self.benchmark.scores:
                lost.append(f"there are none of {self.benchmark.title}'s own scores")
        if unlisted := [group for group in breakdowns if group in missing]:
            lost.append(f"there are no breakdowns by {', '.join(unlisted)}")
        return f"no {', '.join(missing)} in these files: {'; '.join(lost)}" if missing else ""

    def _samples(self, opened: Iterable[tuple[Where, Part]], folders: Sequence[Path] | None) -> Iterator[Sample]:
        for where, part in opened:
            columns, row = self._columns(part)
            check_once(part.twice, columns.__contains__)
            images = ImageReader(part.roots, folders)
            for raw in part.read(columns):
                check_once(twice_in(raw), columns.__contains__)
                number, self.rows = self.rows, self.rows + 1
                if self.rows % PROGRESS_EVERY == 0:
                    self.watch.progress(f"questions {self.name}", self.rows, self.benchmark.rows)
                repeated = str(raw.get(self.benchmark.repeats))
                self._repeats[repeated] += 1
                try:
                    question = row(raw, replace(where, row=number, repeat=self._repeats[repeated]))
                    if question is not None:
                        yield self._sample(question, images)
                except KeyError as error:
                    self._reject(number, Unusable("column missing", str(error)))
                except Unusable as why:
                    self._reject(number, why)

    def _columns(self, part: Part) -> tuple[list[str], Any]:
        """The columns to read and the function of their rows.

        Raises:
            UserError: a column is missing.
        """
        if {"messages", "images"} <= set(part.columns):
            self.filtered = True
            return [c for c in ("id", "messages", "images") if c in part.columns], authors
        found = part.columns
        if part.scan and not set(self.benchmark.columns) <= set(found):
            found = part.scan()
        missing = [name for name in self.benchmark.columns if name not in found]
        if missing:
            raise UserError(
                f"benchmark {self.name}, {part.place}",
                f"no column {', '.join(missing)}; columns found: {listed(found) or 'none'}.",
                f"It should have the columns of {self.benchmark.hub} on the hub.",
            )
        wanted = (*self.benchmark.columns, *self.benchmark.optional)
        return [name for name in wanted if name in found], self.benchmark.row

    def _sample(self, question: Question, images: ImageReader) -> Sample:
        if not question.answer:
            raise Unusable("no answer")
        data = images.read(question.images)
        check_question(question.problem, len(data))
        problem = as_text(question.problem)
        self.tokens += problem != question.problem
        self._grouped |= question.groups.keys()
        self.images.add(data)
        kind, choose_from, golds = self._choice(question)
        more = {OPTIONS: choose_from, GOLDS: golds}
        about = {"groups": question.groups} | {name: value for name, value in more.items() if value}
        return Sample(
            self._unique(question.id),
            problem,
            data,
            question.answer,
            kind,
            json.dumps(about, ensure_ascii=False, sort_keys=True),
        )

    def _choice(self, question: Question) -> tuple[str, list[str], list[str]]:
        """The question's kind, its options, and what counts as right where that is not its answer."""
        kind = "choice" if self.benchmark.choices else question.kind
        if kind != "choice":
            return kind, [], question.golds
        choose_from = question.options or listed_options(question.problem)
        if group := question.groups.get(self.benchmark.options_of):
            choose_from = choose_from or self._options.get(group, [])
            self._options[group] = choose_from
        golds = question.golds
        if not golds and not choice_letters(question.answer):  # the gold is an option's text
            texts = [_bare(option) for option in choose_from]
            if texts.count(gold := _bare(question.answer)) == 1:
                golds = [chr(ord("A") + texts.index(gold))]
            self.unlettered += not golds
        return kind, choose_from, golds

    def _reject(self, row: int, why: Unusable) -> None:
        self.reasons[why.reason] += 1
        self.example = self.example or Rejected(row, "", why.reason, why.detail).told
