"""Which commit of a hub data set or model is meant where no revision is set: resolved once, then kept.

A hub repository changes under its name. So the commit is asked for before anything is read, stands in
the run's config.yaml from then on, and is part of the key. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pipelines.config.schema import Config
from pipelines.errors import UserError

TIMEOUT_S = 10.0
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv")
_COMMIT = re.compile(r"[0-9a-f]{40}")

Kind = Literal["dataset", "model"]


@dataclass(frozen=True)
class Named:
    """A setting that names a hub repository, the setting of its revision, and their values."""

    setting: str
    kind: Kind
    name: str
    revision_setting: str
    revision: str | None


def named_on_hub(config: Config) -> Iterator[Named]:
    """The hub repositories that a run reads."""
    data, model = config.data, config.model
    for named in (
        Named("data.source", "dataset", data.source, "data.revision", data.revision),
        Named(
            "data.validation_source",
            "dataset",
            data.validation_source or "",
            "data.validation_revision",
            data.validation_revision,
        ),
        Named("model.path", "model", model.path, "model.revision", model.revision),
    ):
        ours = named.name in ("", "glyphs" if named.kind == "dataset" else "tiny")
        local = named.name.endswith(_FILES) or Path(named.name).expanduser().exists()
        if not ours and not local and _ID.fullmatch(named.name):
            yield named


def with_revisions(config: Config, revisions: dict[str, str | None]) -> Config:
    """The config with these ``data.revision``, ``model.revision`` ..."""
    for setting, revision in revisions.items():
        section, _, name = setting.partition(".")
        changed = getattr(config, section).model_copy(update={name: revision})
        config = config.model_copy(update={section: changed})
    return config


def as_begun(asked: Config, stored: Config, given: set[str]) -> Config:
    """``asked`` with the commits that a run was begun with, where it asks for no other; with what its
    scores hold, where ``score.store`` is left to the objective and that is the same; and with the further columns
    that its questions have, where nobody says which.

    Args:
        stored: the run's own settings; where ``asked`` comes from them and names another repository,
            their commit is none of it.
        given: the settings that the command gives.
    """
    before = {named.setting: named for named in named_on_hub(stored)}
    known: dict[str, str | None] = {}
    for named in named_on_hub(asked):
        was = before.get(named.setting)
        if was is None:
            continue
        if named.name == was.name and named.revision is None:
            known[named.revision_setting] = was.revision
        left_over = named.name != was.name and named.revision == was.revision
        if left_over and named.revision_setting not in given:
            known[named.revision_setting] = None
    if asked.score.store == "auto" and asked.update.objective == stored.update.objective:
        asked = asked.with_those_of(stored, ["score.store"])
    if "extra" not in asked.data.model_fields_set:
        asked = asked.with_those_of(stored, ["data.extra"])
    return with_revisions(asked, known)


def resolved(config: Config) -> Config:
    """The config with the commit of every hub repository that it names without a revision.

    One that neither the hub nor its cache tells stays without: whoever loads it says what is wrong.
    """
    found = {
        named.revision_setting: _head(named.kind, named.name)[0] or _cached(named.kind, named.name)
        for named in named_on_hub(config)
        if named.revision is None
    }
    return with_revisions(config, {setting: commit or None for setting, commit in found.items()})


def moved(config: Config) -> Iterator[str]:
    """What the hub has now instead of the commits of a config; nothing where it cannot be asked."""
    for named in named_on_hub(config):
        if named.revision and _COMMIT.fullmatch(named.revision):
            now, _ = _head(named.kind, named.name)
            if now and now != named.revision:
                yield (
                    f"{named.setting} {named.name} is at {now[:12]} on the hub by now; this run stays "
                    f"with {named.revision[:12]} ({named.revision_setting})"
                )


def check_commit(table: Any, revision: str | None, place: str) -> None:
    """See that a loaded ``datasets`` table is of the commit that was asked for.

    Without a connection ``datasets`` takes the newest commit in its cache, whatever is asked for.

    Raises:
        UserError: it is of another.
    """
    names = {Path(file["filename"]).parent.name for file in getattr(table, "cache_files", [])}
    others = {name for name in names if _COMMIT.fullmatch(name) and name != revision}
    if revision and _COMMIT.fullmatch(revision) and others:
        raise UserError(
            place,
            f"revision {revision} is asked for, and the cache of this machine holds {min(others)}.",
            "Give the command once where the hub can be reached, or ask for what is there.",
        )


def commit_of(kind: Kind, name: str, place: str) -> str:
    """The commit that a repository is at: on the hub, or else in its cache on this machine.

    Raises:
        UserError: neither knows.
    """
    found, problem = _head(kind, name)
    found = found or _cached(kind, name)
    if not found:
        raise UserError(place, f"cannot be loaded: {problem}.", "Point to a local copy.")
    return found


@cache
def _head(kind: Kind, name: str) -> tuple[str, str]:
    """The commit on the hub, or "" and why it cannot be told."""
    from huggingface_hub import HfApi

    try:
        ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        return ask(name, timeout=TIMEOUT_S).sha or "", "it tells no commit"
    except Exception as error:  # the HTTP client's own types, which change between versions
        return "", (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _cached(kind: Kind, name: str) -> str:
    """The commit in the cache: what main was, else the newest snapshot; "" if there is none."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    head = folder / "refs" / "main"
    if head.is_file():
        commit = head.read_text().strip()
        if (folder / "snapshots" / Path(commit).name).is_dir():
            return commit
    places = list((folder / "snapshots").glob("*"))
    if kind == "dataset":
        from datasets.config import HF_DATASETS_CACHE

        places += Path(HF_DATASETS_CACHE).glob(f"{name.replace('/', '___')}/*/*/*")
    known = [p for p in places if p.is_dir() and _COMMIT.fullmatch(p.name)]
    return max(known, key=lambda p: p.stat().st_mtime).name if known else ""
