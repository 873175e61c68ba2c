"""Reading a config: YAML files with ``base:``, named modes, overrides; errors with line numbers.

Layers, weakest first: the defaults of pipelines/config/schema.py, the ``base:`` file (and its base), the
named file, ``--set key=value``. A layer that names a ``mode`` puts that mode's settings just under
its own. Of a free mapping (``data.columns``) a layer sets one entry, ``data.columns.answer``, or replaces
the whole. The result is one validated, frozen ``Config``, written whole into the run's folder.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipelines.config.constants import cited
from pipelines.config.schema import Config, PublishedConfig, SourceConfig
from pipelines.errors import UserError

MODES: dict[str, dict[str, Any]] = {
    "exact": {
        "score.estimator": "kl",
        "score.perturbation": "patch_black",
        "score.mask_per": "prompt",
        "update.shaping_statistics": "batch",
        **{f"published.{name}": value for name, value in PublishedConfig.introduced.items()},
    },
    "published": {
        "score.estimator": "k3",
        "score.perturbation": "raw_black",
        "score.mask_per": "response",
        "update.shaping_statistics": "micro_batch",
        "update.entropy_estimator": "sampled",
        "update.loss_average": "token",
        "published.resize_first": True,
        "published.strip_question": True,
        "published.drop_surplus": True,
        "published.choice_rule": False,
        "published.filter_text_only": True,
        "published.mini_batch_responses": 128,
        "published.micro_batch_responses": 16,
        "published.decay_all": True,
    },
}
"""What each ``mode`` sets; documented in docs/method.md."""

OLD_MODES = ("paper", "reference")
"""What modes were called once: a file that names one was written by an earlier version."""

OLD_PROFILE = "paper"
"""What the evaluation profile ``published`` was called once, likewise."""

TOKEN_CHOICES: dict[str, dict[str, str]] = {
    "random-k": {"update.objective": "vppo-tgf", "score.estimator": "random"},
    "entropy-response-k": {"update.objective": "vppo-tgf", "score.estimator": "entropy"},
}
"""``update.objective`` -> the settings that it is another name for. In a config that is read they have taken
its place, so names of runs and keys are those of either spelling."""

DEFAULT_CONFIG = "tiny.yaml"

PAPER = "paper"
"""The folder of shipped configs, one for each row of the paper's tables (docs/published.md)."""

LARGEST_CONFIG = 2**17
"""Longer config files (characters) are refused."""

MOST_BASES = 16
"""Files that one config may be based on, one on the other."""

MOST_VALUES, DEEPEST = 100_000, 50
"""Values that a YAML text may come to once its aliases are written out, and how deep they may nest."""


class NotPlain(ValueError):
    """A YAML text that is broken, or stands for more than a config can be.

    ``line`` counts from 1; 0 where it is not known.
    """

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.line = line


def plain_yaml(text: str) -> Any:
    """What a YAML text says; its size is known before anything is made of it.

    Raises:
        NotPlain: it is not YAML, or its aliases or nesting have no end.
    """
    return _construct(_composed(text))


@functools.lru_cache(maxsize=64)  # the same few files over and over; nobody changes a node
def _composed(text: str) -> yaml.Node | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not a text file"
        raise NotPlain(problem, mark.line + 1 if mark else 0) from error
    except RecursionError as error:
        raise NotPlain("it nests too deeply") from error
    if root is not None:
        _count(root, {}, 0)
    return root


def _construct(root: yaml.Node | None) -> Any:
    if root is None:
        return None
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not plain YAML"
        raise NotPlain(str(problem), mark.line + 1 if mark else 0) from error
    except (ValueError, OverflowError, RecursionError, TypeError) as error:  # 2026-02-30, for one
        raise NotPlain(f"a value that cannot be read ({str(error)[:100]})") from error
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node comes to, aliases written out.

    Raises:
        NotPlain: too many, too deep, or without end.
    """
    if depth > DEEPEST:
        raise NotPlain("it nests too deeply", node.start_mark.line + 1)
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # until it is known: a node inside itself has no end
        inside = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) else ()
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in parts)
    if known[id(node)] >= MOST_VALUES:
        raise NotPlain("it comes to too many values (its aliases repeat each other)", node.start_mark.line + 1)
    return known[id(node)]


class _Layer:
    """Settings of one source, flat (dotted key -> value), with where each was written."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}

    def put(self, key: str, value: Any, place: str) -> None:
        """Set a value; that of a free mapping takes the place of its entries, too."""
        if _is_free(key):
            for entry in [name for name in self.values if name.startswith(f"{key}.")]:
                del self.values[entry], self.places[entry]
        self.values[key], self.places[key] = value, place

    def over(self, below: _Layer) -> _Layer:
        replaced = tuple(f"{key}." for key in self.values if _is_free(key))
        kept = [key for key in below.values if not key.startswith(replaced)]
        merged = _Layer()
        merged.values = {key: below.values[key] for key in kept} | self.values
        merged.places = {key: below.places[key] for key in kept} | self.places
        return merged


@functools.cache
def setting_names(model: type[BaseModel] = Config, prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Every dotted setting and its help text with whose number it is, in the order of the file."""
    found: list[tuple[str, str]] = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += setting_names(kind, f"{prefix}{name}.")
        else:
            about = f"{info.description or ''} {cited(prefix + name)}"
            found.append((prefix + name, " ".join(about.split())))
    return tuple(found)


def dotted(settings: Mapping[str, Any] | None, prefix: str = "") -> Iterator[str]:
    """``section.key=value``, as ``load`` takes them, of settings that are dotted or nested."""
    whole = {name for name, _ in setting_names()}  # some of which are mappings themselves
    for name, value in (settings or {}).items():
        if isinstance(value, Mapping) and f"{prefix}{name}" not in whole and not _is_free(f"{prefix}{name}"):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={json.dumps(value, default=str)}"


def shipped_config(name: str) -> Path:
    """The path of a config file that comes with the package."""
    return Path(str(files("configs") / name))


def shipped_configs() -> list[str]:
    """The names of all of them: ``tiny.yaml``, ``paper/table2_tas.yaml`` ..."""
    folder = shipped_config(".")
    found = (*folder.glob("*.yaml"), *folder.glob(f"{PAPER}/*.yaml"))
    return [path.relative_to(folder).as_posix() for path in sorted(found)]


def load(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
    stored: bool = False,
) -> Config:
    """Read a config file (default: the embedded one), then apply ``key=value`` overrides.

    Args:
        path: a YAML file; its name is also looked for among the shipped ones: ``ci.yaml``,
            ``paper/table2_tas.yaml``.
        overrides: ``section.key=value`` with the value in YAML.
        base: settings to start from instead of a file (nested, as ``Config.model_dump`` gives).
        stored: the file is a run's own, which an earlier version may have written.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, a value is not allowed; the
            message names the file and line, and the nearest valid key.
    """
    if base is not None:
        layer = _Layer()
        for key, value in _flatten(base):
            layer.put(key, value, key)
    else:
        layer = _read_file(path or shipped_config(DEFAULT_CONFIG), (), stored)
    asked = _Layer()
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--set {text}", "no value.", "Write --set section.key=value.")
        try:
            for name, part in _spread(key.strip(), plain_yaml(value)):
                asked.put(name, part, key.strip())
        except NotPlain as error:
            raise UserError(
                f"--set {shortened(text)}",
                f"{shortened(value)!r} is not YAML: {error}.",
                "Quote it, or mind the brackets.",
            ) from error
    return _validate(_with_choice(_with_mode(asked).over(layer)))


def _with_mode(layer: _Layer) -> _Layer:
    """The layer over what its mode sets.

    Raises:
        UserError: it names a mode of earlier versions.
    """
    preset = _Layer()
    if (old := layer.values.get("mode")) in OLD_MODES:
        raise UserError(
            layer.places["mode"],
            f"{old!r} is called otherwise now.",
            "mode: exact is our own variant (paper, earlier); mode: published is what the authors ran "
            "(more of it than reference was).",
        )
    for key, value in MODES.get(str(layer.values.get("mode")), {}).items():
        preset.put(key, value, f"mode {layer.values['mode']}, {key}")
    return layer.over(preset)


def _with_choice(layer: _Layer) -> _Layer:
    """The layer with a name of ``TOKEN_CHOICES`` written out, over what a mode sets.

    Raises:
        UserError: something else than a mode sets another value.
    """
    name = layer.values.get("update.objective")
    meant = TOKEN_CHOICES.get(str(name), {})
    place = layer.places.get("update.objective", "")
    for key, value in meant.items():
        if key != "update.objective" and layer.values.get(key, value) != value:
            said = layer.places[key]
            if not said.startswith("mode "):
                raise UserError(
                    said,
                    f"{shortened(str(layer.values[key]))!r} is not what update.objective: {name} ranks tokens by.",
                    f"Leave it out, or take {value}: {name} is update.objective={meant['update.objective']} with it.",
                )
        layer.put(key, value, place)
    return layer


def _migrated(layer: _Layer) -> _Layer:
    """The settings of a run's own file, where an earlier version wrote it, as they are called now.

    Such a file has every setting of its time, and those of today that it lacks are as all runs had them
    then (``introduced``). So its mode, which is but a name for some of them, sets nothing.
    """
    found = layer.values
    if found.get("eval.profile") == OLD_PROFILE:
        found["eval.profile"] = "published"
    if found and "score.store" not in found:
        layer.put("score.store", "perception", "score.store")
    if found and "data.extra" not in found:
        layer.put("data.extra", "none", "data.extra")
    if found.get("mode") not in OLD_MODES:
        return layer
    found["mode"] = "exact"
    if found.get("score.estimator") == "top1_drop":
        found["score.estimator"] = "argmax_drop"
    shaped = found.get("update.shaping_statistics") == "micro_batch"
    if shaped or ":" in str(found.get("update.objective")):  # which may look at micro-batches
        sizes = found.get("update.micro_batch_prompts"), found.get("rollout.samples_per_prompt")
        if all(isinstance(size, int) for size in sizes):
            responses = math.prod(size for size in sizes if isinstance(size, int))
            layer.put("published.micro_batch_responses", responses, layer.places["mode"])
    return layer


def _read_file(path: Path, seen: tuple[Path, ...], stored: bool = False) -> _Layer:
    shipped = (shipped_config(path.name), shipped_config(f"{PAPER}/{path.name}"))
    found = next((p for p in (path, *shipped) if _is_file(p)), None)
    place = shortened(str(path))
    if found is None:
        raise UserError(place, "no such config file.", f"Shipped ones: {' '.join(shipped_configs())}.")
    if found in seen:
        raise UserError(place, "base: goes round in a circle.", "Remove one of the base: lines.")
    if len(seen) > MOST_BASES:
        raise UserError(
            place,
            f"is the base of a base, {len(seen)} files deep; {MOST_BASES} are read.",
            "Write their settings into one file.",
        )
    try:
        with found.open(encoding="utf-8") as file:
            text = file.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            raise NotPlain("it is too long for a config")
        root = _composed(text)
        values = _construct(root)
    except (NotPlain, UnicodeDecodeError) as error:
        at = error.line if isinstance(error, NotPlain) else 0
        raise UserError(
            f"{path}, line {at}" if at else str(path),
            f"not YAML: {error if isinstance(error, NotPlain) else 'not a text file'}.",
            "Settings are written as in configs/tiny.yaml.",
        ) from error
    layer = _Layer()
    if root is None:
        return layer
    if not isinstance(values, dict):
        raise UserError(f"{path}, line 1", "expected settings (key: value).", "See configs/tiny.yaml.")
    lines = dict(_lines(root))
    base = values.pop("base", None)
    for key, value in _flatten(values):
        line = lines.get(key) or lines.get(key.rpartition(".")[0], 1)
        layer.put(key, value, f"{path}, line {line}, {key}")
    layer = _with_mode(_migrated(layer) if stored else layer)
    if base is not None:
        return layer.over(_read_file(found.parent / str(base), (*seen, found)))
    return layer


def not_given(path: Path) -> list[str]:
    """The settings that a config file, with what it is based on, leaves at their defaults.

    But those that are younger than keys (``introduced``): files from before cannot have them.
    """
    given = _read_file(path, (), stored=True).values
    return [name for name, _ in setting_names() if name not in given and not _is_young(name)]


def _is_young(setting: str) -> bool:
    *sections, name = setting.split(".")
    holder: Any = Config
    for section in sections:
        holder = holder.model_fields[section].annotation
    return name in getattr(holder, "introduced", ())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def shortened(text: str) -> str:
    """A value for a message, which may have come with any length."""
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


TEST_SETS = "eval.sources"
"""The setting whose values are sections by free names: ``eval.sources.mytest.split``."""

FREE = ("data.columns", "update.constants", TEST_SETS)
"""Settings whose value is a mapping by free names."""


def _is_free(key: str) -> bool:
    """Whether the value is such a mapping; a test set's ``columns`` are one as well."""
    return key in FREE or (key.startswith(f"{TEST_SETS}.") and key.count(".") == 3 and key.endswith(".columns"))


def _path(key: str) -> list[str]:
    """Sections and the name; that of an entry of a free mapping may hold dots of its own."""
    return key.split(".", 4 if key.startswith(f"{TEST_SETS}.") else 2 if key.startswith(FREE) else -1)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not _is_free(key):
            yield from _flatten(value, f"{key}.")
        else:
            yield from _spread(key, value)


def _spread(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A test set field by field, its path as its ``source``; any other setting as it is."""
    if key == TEST_SETS and isinstance(value, Mapping):
        yield key, {}
        for name, given in value.items():
            yield from _spread(f"{key}.{name}", given)
    elif key.startswith(f"{TEST_SETS}.") and key.count(".") == 2:
        fields = value if isinstance(value, Mapping) and value else {"source": value or None}
        yield from ((f"{key}.{field}", given) for field, given in fields.items())
    else:
        yield key, value


def _check_known(key: str, value: Any, place: str, names: Mapping[str, str]) -> None:
    """See that there is such a setting; of a test set, such a field."""
    if key == TEST_SETS and value != {}:
        raise UserError(place, "is no mapping of names to sources.", "Such as {mytest: data/mytest.jsonl}.")
    if key.startswith(f"{TEST_SETS}."):
        field = key.removeprefix(f"{TEST_SETS}.").partition(".")[2]
        if field not in SourceConfig.model_fields and not field.startswith("columns."):
            fields = ", ".join(SourceConfig.model_fields)
            raise UserError(place, f"no such setting: {shortened(key)}.", f"A test set is a path, or has {fields}.")
    elif key not in names and not key.startswith(tuple(f"{name}." for name in FREE)):
        raise _unknown(shortened(key), place, list(names))


def _lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = f"{prefix}{key_node.value}"
            yield key, key_node.start_mark.line + 1
            yield from _lines(value_node, f"{key}.")


def _validate(layer: _Layer) -> Config:
    known = dict(setting_names())
    nested: dict[str, Any] = {}
    for key, value in layer.values.items():
        _check_known(key, value, shortened(layer.places[key]), known)
        if (wrong := _no_text(value)) is not None:
            raise UserError(
                layer.places[key],
                f"{shortened(ascii(wrong))} is not text: it holds half of a surrogate pair, or a null character.",
                "Write it again.",
            )
        *sections, name = _path(key)
        holder = nested
        for section in sections:
            if holder.get(section) is None:
                holder[section] = {}
            holder = holder[section]
            if not isinstance(holder, dict):  # no mapping, which is refused below
                break
        else:
            holder[name] = dict(value) if isinstance(value, Mapping) else value
    if layer.values.get("eval.profile") == OLD_PROFILE:
        raise UserError(
            layer.places["eval.profile"],
            f"{OLD_PROFILE!r} is called otherwise now.",
            "eval.profile: published, or matched (as in training).",
        )
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        first = error.errors()[0]
        key = next(
            (
                k
                for k in _prefixes(".".join(map(str, first["loc"])))
                if k in layer.places and (k != TEST_SETS or section == k)
            ),
            "",
        )
        section = ".".join(map(str, first["loc"]))
        place = layer.places.get(key) or _file_of(section, layer.places) + (section or "config")
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            problem = f"{shortened(_written(first['input']))}: {problem[0].lower()}{problem[1:]}"
        about = f"See: vppo config {section.partition('.')[0]}".rstrip()
        if key in known:
            about = f"It means: {known[key].replace('``', '')}"
        raise UserError(place, problem + ".", about) from error


def _written(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # a number of more digits than Python writes
        return f"a {type(value).__name__} too long to be written"


def _no_text(value: Any) -> str | None:
    """A text in a value that no file can hold."""
    if isinstance(value, str):
        return value if "\0" in value or value.encode(errors="replace").decode() != value else None
    inside = (*value, *value.values()) if isinstance(value, Mapping) else value
    if isinstance(inside, (list, tuple)):
        return next((found for found in map(_no_text, inside) if found is not None), None)
    return None


def _file_of(section: str, places: Mapping[str, str]) -> str:
    """``file, `` where a setting of the section was read from one; "" where none was."""
    for name, place in places.items():
        file, read, _ = place.partition(", line ")
        if read and (not section or name.startswith(f"{section}.")):
            return f"{file}, "
    return ""


def _prefixes(key: str) -> Iterator[str]:
    while key:
        yield key
        key = key.rpartition(".")[0]


def _unknown(key: str, place: str, known: list[str]) -> UserError:
    if any(name.startswith(f"{key}.") for name in known):
        return UserError(place, "is a section, not a setting.", f"Set its fields one by one (vppo config {key}).")
    near = _meant(key, known)
    hint = f" Did you mean {near}?" if near else ""
    section = key.partition(".")[0]
    topic = f" {section}" if any(name.startswith(f"{section}.") for name in known) else ""
    return UserError(place, f"no such setting.{hint}", f"(vppo config{topic} lists them)")


ELSEWHERE = {
    "lr": "learning_rate",
    "bs": "batch_prompts",
    "batch_size": "batch_prompts",
    "mbs": "micro_batch_prompts",
    "micro_batch_size": "micro_batch_prompts",
    "n": "samples_per_prompt",
    "num_generations": "samples_per_prompt",
    "group_size": "samples_per_prompt",
    "beta": "kl_coefficient",
    "max_tokens": "max_new_tokens",
}
"""What other trainers call a setting -> its last word here, where letters alone would not tell."""


def _meant(key: str, known: Sequence[str]) -> str:
    """The setting that is meant by a name that is none, or "": the same name in another section, a short
    form (``wd`` for ``weight_decay``), else one spelled alike."""
    section, _, last = key.rpartition(".")
    word = ELSEWHERE.get(last, last)
    for fits in (word.__eq__, lambda name: len(last) > 1 and _short_for(last.replace("_", ""), name.split("_"))):
        found = [name for name in known if fits(name.rpartition(".")[2])]
        if found:
            return min(found, key=lambda name: name.rpartition(".")[0] != section)
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.6)), "")


def _short_for(letters: str, words: Sequence[str]) -> bool:
    """Whether the letters are the beginnings of all these words, in order."""
    if not words:
        return not letters
    starts = range(1, min(len(letters), len(words[0])) + 1)
    return any(words[0].startswith(letters[:n]) and _short_for(letters[n:], words[1:]) for n in starts)


def dump(config: Config) -> str:
    """The whole config as YAML, as written into a run's folder; ``load`` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_hash(config: Config, mode: str = "paper") -> str:
    """Hash of every setting that decides a result (hex, 64 digits).

    Args:
        mode: one of ``OLD_MODES``, which hashes once held: all runs have the first, but those that an
            earlier version began as ``reference``.
    """
    text = json.dumps({"mode": mode, **config.keyed("")}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def run_name(config: Config, digits: int = 8, mode: str = "paper") -> str:
    """``tiny-7f3a19c2``: the config's name and the first digits of its hash; ``mode`` as there."""
    return f"{config.name}-{config_hash(config, mode)[:digits]}"
