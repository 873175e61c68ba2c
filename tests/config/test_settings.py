"""Layers of settings, modes, and errors that say where and what instead."""

from functools import reduce
from itertools import pairwise
from json import dumps
from pathlib import Path

import pytest
import yaml
from annotated_types import Le
from pydantic import BaseModel

from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.schema import Config, DataConfig, PublishedConfig
from pipelines.errors import UserError
from pipelines.objectives.table import OBJECTIVES


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path | None, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        settings.load(path, overrides)
    return caught.value


# --- layers ---------------------------------------------------------------------------------------


def test_each_layer_beats_the_one_below(tmp_path):
    # The default of keep_fraction is 0.4, of top_p 0.99, of beta_min 0.9, of clip_low 0.2.
    write(tmp_path, "base.yaml", "rollout: {top_p: 0.5}\nupdate: {beta_min: 0.5, clip_low: 0.1}\n")
    path = write(tmp_path, "a.yaml", "base: base.yaml\nupdate:\n  beta_min: 0.6\n  clip_low: 0.15\n")
    config = settings.load(path, ["update.clip_low=0.3"])
    assert config.score.keep_fraction == 0.4  # the default
    assert config.rollout.top_p == 0.5  # the base file
    assert config.update.beta_min == 0.6  # the file
    assert config.update.clip_low == 0.3  # --set


def test_a_base_has_a_base_and_a_shipped_file_can_be_one(tmp_path):
    write(tmp_path, "b.yaml", "base: tiny.yaml\nseed: 5\n")
    config = settings.load(write(tmp_path, "a.yaml", "base: b.yaml\nname: mine\n"))
    shipped = settings.load(None)
    assert config == shipped.model_copy(update={"name": "mine", "seed": 5})


def test_an_empty_file_is_the_defaults(tmp_path):
    assert settings.load(write(tmp_path, "a.yaml", "")) == Config()


def test_the_last_of_two_overrides_holds_and_values_are_yaml():
    config = settings.load(None, ["seed=1", "seed = 2", "data.glyphs.levels=[1, 2]", "data.columns={problem: q}"])
    assert config.seed == 2
    assert config.data.glyphs.levels == (1, 2)
    assert config.data.columns == {"problem": "q"}


FREE_MAPPINGS = [
    ("data.columns", {"answer": "gold", "id": "n"}, "problem", "q"),
    ("update.constants", {"tau": 0.3, "beta": 0.5}, "tua", 1.0),
    ("eval.sources", {"a": "a.csv", "b": "b.csv"}, "c", "c.csv"),
    ("eval.sources.a.columns", {"answer": "gold", "id": "n"}, "problem", "q"),
]


@pytest.mark.parametrize(("key", "theirs", "name", "value"), FREE_MAPPINGS)
def test_an_entry_of_a_free_mapping_is_set_over_the_others_and_the_whole_replaces_them(
    tmp_path, key, theirs, name, value
):
    def found(path, *asked):
        config = settings.load(path, asked)
        whole = reduce(lambda held, part: held[part] if isinstance(held, dict) else getattr(held, part), parts, config)
        return {name: getattr(one, "source", one) for name, one in whole.items()}

    parts = key.split(".")
    first = next(iter(theirs))
    base = write(tmp_path, "base.yaml", f"eval.sources.a: a.csv\n{key}: {dumps(theirs)}\n")
    entry = write(tmp_path, "entry.yaml", f"base: base.yaml\n{key}.{name}: {value}\n")
    whole = write(tmp_path, "whole.yaml", f"base: base.yaml\n{key}: {{{name}: {value}}}\n")
    assert found(entry) == found(base, f"{key}.{name}={value}") == theirs | {name: value}
    assert found(whole) == found(base, f"{key}={{{name}: {value}}}") == {name: value}
    assert found(base, f"{key}={{}}") == {}
    assert found(entry, f"{key}={{}}", f"{key}.{first}={theirs[first]}") == {first: theirs[first]}
    assert found(base, *settings.dotted({key: {name: value}})) == {name: value}
    assert found(base, *settings.dotted({f"{key}.{name}": value})) == theirs | {name: value}


def test_an_entry_of_what_is_no_mapping_is_refused_with_it():
    with pytest.raises(UserError, match=r"data.columns: 3: input should be a valid dictionary"):
        settings.load(None, ["data.columns=3", "data.columns.answer=gold"])
    with pytest.raises(UserError, match=r"data.columns.answer: 3: input should be a valid string"):
        settings.load(None, ["data.columns.answer=3"])


def test_settings_may_start_from_a_mapping():
    config = settings.load(base={"score": {"keep_fraction": 0.2}}, overrides=["seed=3"])
    assert (config.score.keep_fraction, config.seed) == (0.2, 3)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().score.keep_fraction = 0.1  # type: ignore[misc]


# --- modes ----------------------------------------------------------------------------------------


def test_published_mode_sets_what_the_authors_code_does():
    config = settings.load(None, ["mode=published"])
    assert config.score.estimator == "k3"
    assert config.score.perturbation == "raw_black"
    assert config.score.mask_per == "response"
    assert config.update.shaping_statistics == "micro_batch"
    assert config.update.entropy_estimator == "sampled"  # tiny.yaml, below, says none
    assert config.rollout == settings.load(None).rollout  # of which the mode says nothing
    assert config.published == PublishedConfig(
        resize_first=True,
        strip_question=True,
        drop_surplus=True,
        choice_rule=False,
        filter_text_only=True,
        mini_batch_responses=128,
        micro_batch_responses=16,
        decay_all=True,
    )


def test_both_modes_set_the_same_settings_and_exact_is_the_default():
    ours, theirs = (settings.MODES[mode] for mode in ("exact", "published"))
    named = {"update.entropy_estimator", "update.loss_average"}
    assert theirs.keys() - ours.keys() == named
    assert {name for name in ours if ours[name] == theirs[name]} == set()
    default = Config().model_dump()
    assert all(default[n.partition(".")[0]][n.partition(".")[2]] == v for n, v in ours.items())
    section = {f"published.{name}" for name in PublishedConfig.model_fields}
    assert section <= ours.keys()
    assert default["published"] == PublishedConfig.introduced  # so that no older key knows of it


def test_shaping_by_micro_batches_needs_their_sizes():
    with pytest.raises(UserError, match="nobody says how large") as error:
        settings.load(None, ["update.shaping_statistics=micro_batch"])
    assert "published.micro_batch_responses" in str(error.value)


@pytest.mark.parametrize(("groups", "key"), [(16, None), (3, 3)])
@pytest.mark.parametrize("decides", ["shaping_statistics: micro_batch", "objective: mine:terms"])
def test_micro_batches_of_an_earlier_version_stay_as_they_were(tmp_path, groups, key, decides):
    values = settings.load(None).model_dump(mode="json")
    del values["published"]
    name, value = decides.split(": ")
    values["update"] |= {name: value, "micro_batch_prompts": groups}
    path = write(tmp_path, "a.yaml", yaml.safe_dump(values | {"mode": "reference"}))
    config = settings.load(path, stored=True)
    assert config.published.micro_batch_responses == groups * 8
    held = config.holds("update", "published")
    assert held.get("update.micro_batch_prompts") == key
    assert not any(name.startswith("published") for name in held)
    passes = config.update.model_copy(update={"micro_batch_prompts": 5})
    assert config.model_copy(update={"update": passes}).holds("update", "published") == held


def test_an_objective_of_ones_own_has_the_sizes_in_its_key():
    none, some = (
        settings.load(None, ["update.objective=mine:terms", *more]).holds("update", "published")
        for more in ((), ("published.micro_batch_responses=128",))
    )
    assert none != some


def test_what_was_called_top1_drop_is_told_apart(tmp_path):
    values = settings.load(None, ["score.estimator=argmax_drop"]).model_dump(mode="json")
    values["score"]["estimator"] = "top1_drop"
    path = write(tmp_path, "a.yaml", yaml.safe_dump(values | {"mode": "paper"}))
    old = settings.load(path, stored=True)
    new = settings.load(None, ["score.estimator=top1_drop"])
    assert old.score.estimator == "argmax_drop"
    assert old.holds("score.estimator") == {"score.estimator": "top1_drop"}  # as its folders have it
    assert new.holds("score.estimator") != old.holds("score.estimator")


def test_what_a_layer_says_itself_beats_its_mode(tmp_path):
    path = write(tmp_path, "a.yaml", "mode: published\nscore:\n  estimator: jsd\n")
    config = settings.load(path)
    assert (config.score.estimator, config.score.mask_per) == ("jsd", "response")
    config = settings.load(None, ["mode=published", "score.estimator=kl"])
    assert (config.score.estimator, config.score.mask_per) == ("kl", "response")


def test_a_mode_beats_the_layers_below(tmp_path):
    path = write(tmp_path, "a.yaml", "score:\n  estimator: jsd\n")
    assert settings.load(path, ["mode=published"]).score.estimator == "k3"


def test_exact_mode_takes_it_all_back(tmp_path):
    # What is recorded as exact must be it, whatever file it started from.
    path = write(tmp_path, "a.yaml", "mode: published\n")
    config = settings.load(path, ["mode=exact"])
    assert config.score == Config().score
    assert config.update.shaping_statistics == "batch"


def test_a_mode_is_but_a_name(tmp_path):
    config = settings.load(None, ["mode=published"])
    named = config.model_copy(update={"mode": "exact"})
    assert settings.config_hash(named) == settings.config_hash(config)
    keys = [[step.key for step in Chain(one, tmp_path).all()] for one in (named, config)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_a_mode_of_earlier_versions_is_refused_with_the_new_names(tmp_path, mode):
    path = write(tmp_path, "a.yaml", f"seed: 1\nmode: {mode}\n")
    for given in ((path, []), (None, [f"mode={mode}"])):
        with pytest.raises(UserError, match=r"mode: exact .* mode: published") as error:
            settings.load(*given)
        assert mode in str(error.value)
        assert ("line 2" in str(error.value)) == (given[0] is not None)


def test_a_runs_own_file_of_an_earlier_version_keeps_what_it_says(tmp_path):
    values = settings.load(None).model_dump(mode="json")
    values["score"]["estimator"] = "k3"
    for mode in settings.OLD_MODES:
        path = write(tmp_path, "a.yaml", yaml.safe_dump(values | {"mode": mode}))
        config = settings.load(path, stored=True)
        assert config == settings.load(None, ["score.estimator=k3"])


def test_the_profile_of_earlier_versions_is_refused_with_the_new_name(tmp_path):
    path = write(tmp_path, "a.yaml", "seed: 1\neval:\n  profile: paper\n")
    for given in ((path, []), (None, ["eval.profile=paper"])):
        with pytest.raises(UserError, match=r"eval.profile: published, or matched"):
            settings.load(*given)
    assert "line 3" in refused(path).place


def test_a_runs_own_file_has_its_profile_under_the_new_name_and_the_old_key(tmp_path):
    values = settings.load(None).model_dump(mode="json")
    values["eval"]["profile"] = "paper"
    config = settings.load(write(tmp_path, "a.yaml", yaml.safe_dump(values)), stored=True)
    assert config == settings.load(None)
    assert config.eval.profile == "published"
    assert config.keyed("")["eval.profile"] == "paper"
    chain = Chain(settings.load(None, ["eval.benchmarks=[geo3k]"]), tmp_path)
    assert chain.cell(0, "geo3k").results.settings["eval.profile"] == "paper"


# --- errors ---------------------------------------------------------------------------------------


def test_an_unknown_key_names_file_line_and_nearest(tmp_path):
    path = write(tmp_path, "a.yaml", "seed: 1\nscore:\n  estimator: kl\n  keep_fractoin: 0.2\n")
    error = refused(path)
    assert error.place == f"{path}, line 4, score.keep_fractoin"
    assert "Did you mean score.keep_fraction?" in error.problem


def test_a_bad_value_names_file_line_and_meaning(tmp_path):
    path = write(tmp_path, "a.yaml", "# a comment\nscore:\n\n  keep_fraction: 1.5\n")
    error = refused(path)
    assert error.place == f"{path}, line 4, score.keep_fraction"
    assert "1.5" in error.problem
    assert "less than or equal to 1" in error.problem
    assert "Share k of each response's tokens" in error.fix


def test_the_line_is_that_of_the_layer_that_holds(tmp_path):
    base = write(tmp_path, "base.yaml", "run:\n  steps: -1\n")
    path = write(tmp_path, "a.yaml", "base: base.yaml\nseed: 1\n")
    assert refused(path).place == f"{base}, line 2, run.steps"
    assert refused(path, "run.steps=-2").place == "run.steps"


def test_wrong_type_in_an_override():
    error = refused(None, "run.steps=many")
    assert error.place == "run.steps"
    assert "'many'" in error.problem


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("update.learning_rat=1", "update.learning_rate"),  # a typing error in the name
        ("updates.learning_rate=1", "update.learning_rate"),  # in the section
        ("keep_fraction=0.2", "score.keep_fraction"),  # the section left out
        ("run.seed=1", "seed"),  # there is one elsewhere
        ("update.lr=1", "update.learning_rate"),  # as everyone calls it, though lora_rank has the same initials
        ("update.wd=1", "update.weight_decay"),  # initials
        ("update.kl_coef=1", "update.kl_coefficient"),  # beginnings
        ("rollout.temp=1", "rollout.temperature"),
        ("rollout.n=8", "rollout.samples_per_prompt"),
        ("update.bs=8", "update.batch_prompts"),
    ],
)
def test_nearest_name_of_an_override(override, nearest):
    assert f"Did you mean {nearest}?" in refused(None, override).problem


def test_an_override_without_a_value_or_with_broken_yaml():
    assert refused(None, "run.steps").place == "--set run.steps"
    assert "is not YAML" in refused(None, "run.steps=[1").problem


def test_settings_that_contradict_each_other():
    error = refused(None, "rollout.accuracy_low=0.995")
    assert "rollout.accuracy_low (0.995) must be below rollout.accuracy_high (0.99)" in error.problem
    error = refused(None, "rollout.accuracy_high=0.9", "rollout.filter_key=reward")
    assert "accuracy_high (0.9) is a limit of accuracy, and rollout.filter_key is reward" in error.problem
    assert refused(None, "checkpoint.best_key=a/b").place == "checkpoint.best_key"
    error = refused(None, "update.overlong_cache=65", "rollout.max_new_tokens=64")
    assert "longer than rollout.max_new_tokens (64)" in error.problem
    error = refused(None, "update.beta_max=0.8")
    assert "beta_max (0.8) is below beta_min (0.9)" in error.problem
    assert "at least 2 are needed" in refused(None, "rollout.samples_per_prompt=1").problem
    assert "choose from 1, 2, 3" in refused(None, "data.glyphs.levels=[1, 4]").problem


def test_a_missing_file_lists_the_shipped_ones(tmp_path):
    error = refused(tmp_path / "no.yaml")
    assert error.problem == "no such config file."
    assert "tiny.yaml" in error.fix


def test_a_file_that_is_not_yaml_names_the_line(tmp_path):
    path = write(tmp_path, "a.yaml", "seed: 1\nscore: {keep_fraction: 0.2\n")
    assert refused(path).place.startswith(f"{path}, line ")
    path.write_bytes(b"\xff\xfe\x00")
    assert "not" in refused(path).problem
    assert "expected settings" in refused(write(tmp_path, "a.yaml", "- a list\n")).problem


def test_a_circle_of_bases(tmp_path):
    write(tmp_path, "b.yaml", "base: a.yaml\n")
    assert "circle" in refused(write(tmp_path, "a.yaml", "base: b.yaml\n")).problem


# --- what would hang, fill memory or end in a traceback ------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join(['*' + below] * 9)}]\n" for below, this in pairwise("abcdefghi")
)
"""9 ** 9 values in 300 characters."""

MERGED = "a: &a {x: 1}\n" + "".join(
    f"{this}: &{this} {{<<: [{', '.join(['*' + below] * 9)}]}}\n" for below, this in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "too many values"),
        (MERGED, "too many values"),
        ("seed: &a [*a]\n", "too many values"),
        ("seed: " + "[" * 600, "nests too deeply"),
        ("seed: " + "[" * 60 + "]" * 60, "nests too deeply"),
        ("a: " * 1, "no such setting"),
        ("seed: 2026-02-30", "cannot be read"),
        ("seed: " + "9" * 5000, "cannot be read"),
        ("seed: 0x" + "f" * 6000, "seed"),
        ("name: " + "x" * 200_000, "too long"),
        ('data: {instruction: "\\ud800"}', "half of a surrogate pair"),
        ('data: {columns: {problem: "\\udc00"}}', "half of a surrogate pair"),
        ('eval: {benchmarks: ["a\\0b"]}', "null character"),
        ('"\\ud800": 1', "no such setting"),
    ],
)
def test_bombs_and_broken_values_are_told(tmp_path, text, problem):
    error = refused(write(tmp_path, "a.yaml", text))
    assert problem in f"{error.place} {error.problem}"
    assert len(str(error)) < 1500


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.columns={a: &a [*a]}", "too many values"),
        ("seed=" + "[" * 600, "nests too deeply"),
        ("seed=2026-02-30", "cannot be read"),
        ("seed=" + "9" * 5000, "cannot be read"),
        ('data.instruction="\\ud800"', "half of a surrogate pair"),
        ("data.source=\udcff.jsonl", "not a text file"),
        ("update.adam_betas=[1, 1]", "at least 0 and below 1"),
        ("update.adam_betas=[0.9, -0.1]", "at least 0 and below 1"),
        ("update.adam_betas=[0.9, 0.99, 0.999]", "at most 2 items"),
        ("name=" + "x" * 300, "at most 100"),
        ("x" * 5000 + "=1", "no such setting"),
        ("run.steps=99999999999", "less than or equal to 20000"),
        ("run.threads=1000000", "less than or equal to 4096"),
        ("data.workers=1000000", "less than or equal to 4096"),
        ("reward.workers=1000000", "less than or equal to 4096"),
        ("eval.samples=99999999999", "less than or equal to 10000"),
        ("rollout.samples_per_prompt=99999999999", "less than or equal to 10000"),
        ("rollout.max_new_tokens=99999999999", "less than or equal to 16777216"),
        ("data.glyphs.train=99999999999", "less than or equal to 1000000000"),
        (f"seed={2**63}", f"less than or equal to {2**63 - 1}"),
    ],
)
def test_values_beyond_all_sense_are_told(override, problem):
    error = refused(None, override)
    assert problem in error.problem
    assert len(str(error)) < 1500


def test_aliases_that_save_typing_are_fine(tmp_path):
    path = write(
        tmp_path,
        "a.yaml",
        "eval: &how {samples: 2, limit: 5}\nname: a\nseed: 3\ndata: {limit: 7, glyphs: {levels: &l [1, 2]}}\n",
    )
    config = settings.load(path)
    assert (config.eval.samples, config.data.limit) == (2, 7)


def test_no_whole_number_is_without_a_bound():
    def fields(model, prefix=""):
        for name, info in model.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                yield from fields(info.annotation, f"{prefix}{name}.")
            else:
                yield prefix + name, info

    numbers = {name: info for name, info in fields(Config) if info.annotation in (int, int | None)}
    assert len(numbers) > 40
    bounded = {name for name, info in numbers.items() for limit in info.metadata if isinstance(limit, Le)}
    assert bounded == numbers.keys()


def test_a_long_chain_of_bases(tmp_path):
    for n in range(1200):
        write(tmp_path, f"{n}.yaml", f"base: {n + 1}.yaml\n")
    error = refused(tmp_path / "0.yaml")
    assert "16 are read" in error.problem
    for n in range(16):  # as many as are read
        write(tmp_path, f"ok{n}.yaml", f"base: ok{n + 1}.yaml\n")
    write(tmp_path, "ok16.yaml", "seed: 3\n")
    assert settings.load(tmp_path / "ok0.yaml").seed == 3


@pytest.mark.parametrize("name", ["x" * 300 + ".yaml", "a\0.yaml", "/dev/zero"])
def test_a_base_that_can_be_no_file(tmp_path, name):
    assert "no such config file" in refused(write(tmp_path, "a.yaml", f"base: {dumps(name)}")).problem


# --- own data are evaluated on their own questions ------------------------------------------------


def test_benchmarks_of_own_data():
    own = "data.source=q.jsonl"
    assert settings.load(None).eval.benchmarks == ("glyphs",)
    assert settings.load(None, [own]).eval.benchmarks == ("validation",)
    assert settings.load(None, [own, "data.validation_count=0"]).eval.benchmarks == ()
    assert settings.load(None, [own, "eval.benchmarks=[geo3k]"]).eval.benchmarks == ("geo3k",)
    assert settings.load(None, [own, "eval.samples=2"]).eval.samples == 2
    assert Config(data=DataConfig(source="q.jsonl")).eval.benchmarks == ("validation",)
    stored = settings.load(None).model_dump(mode="json")  # says glyphs itself: told, not guessed
    assert settings.load(None, [own], base=stored).eval.benchmarks == ("glyphs",)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(settings.shipped_config(".").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_parses(path):
    config = settings.load(path)
    assert config.update.objective in OBJECTIVES
    assert len(list(Chain(config, path.parent).all())) > 3 * config.run.steps


def test_dump_and_load_are_inverse(tmp_path):
    config = settings.load(None, ["mode=published", "data.columns={problem: q}", "update.tis_cap=2", "seed=4"])
    path = write(tmp_path, "config.yaml", settings.dump(config))
    assert settings.load(path) == config
    assert set(yaml.safe_load(path.read_text())) == set(Config.model_fields)  # nothing is left out


def test_every_setting_has_a_help_text():
    missing = [name for name, text in settings.setting_names() if not text]
    assert missing == []


# --- the name of a run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "run.steps=7",
        "run.threads=1",
        "run.device=cpu",
        "rollout.batch_prompts=3",
        "score.batch_prompts=3",
        "update.micro_batch_prompts=3",
        "model.shared_prefix=false",
        "update.gradient_checkpointing=true",
        "reward.workers=3",
        "checkpoint.keep_last=9",
        "eval.baseline=false",
        "eval.batch_prompts=3",
    ],
)
def test_a_run_keeps_its_name_when_no_result_can_change(override):
    assert settings.run_name(settings.load(None, [override])) == settings.run_name(settings.load(None))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.glyphs.train=9",
        "model.dtype=bfloat16",
        "rollout.temperature=0.9",
        "reward.grader=math-verify",
        "score.keep_fraction=0.2",
        "update.learning_rate=1e-3",
        "checkpoint.validation_samples=1",
        "eval.samples=2",
    ],
)
def test_a_run_gets_another_name_when_a_result_changes(override):
    assert settings.run_name(settings.load(None, [override])) != settings.run_name(settings.load(None))


def test_a_run_name_is_the_configs_and_a_hash():
    name = settings.run_name(settings.load(None, ["name=mine"]))
    assert name.startswith("mine-")
    assert len(name) == len("mine-") + 8


def test_what_is_wrong_with_a_whole_section_names_the_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("data:\n  glyphs:\n    levels: [1, 5, 3]\n")
    with pytest.raises(UserError) as caught:
        settings.load(path)
    assert caught.value.place == f"{path}, data.glyphs"
    assert caught.value.fix == "See: vppo config data"
