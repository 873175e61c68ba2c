"""Which folder a run's settings have: theirs alone, whatever else is there."""

import pytest
import yaml
from command_line import given, vppo

from pipelines import runs
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.hub import as_begun
from pipelines.errors import UserError

OTHER = settings.load(None, ["seed=5"])


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("VPPO_RUNS", str(tmp_path))
    return settings.load(None)


def begun(config, digits, of=None):
    """A run's folder with a config, named after that of another."""
    folder = runs.runs_folder() / settings.run_name(of or config, digits)
    folder.mkdir(parents=True)
    runs.write_config(folder, config)
    return folder


def test_a_new_run_has_eight_digits_and_is_found_again(config):
    path, note = runs.run_of(config)
    assert (path.name, note) == (settings.run_name(config), "")
    begun(config, 8)
    longer = settings.load(None, ["run.steps=99", "rollout.batch_prompts=3"])
    assert runs.run_of(longer) == (path, "")


def test_a_run_whose_name_has_four_digits_goes_on(config):
    old = begun(config, 4)
    assert runs.run_of(config) == (old, "")


def test_four_digits_of_other_settings_are_left_alone(config):
    begun(OTHER, 4, of=config)
    assert runs.run_of(config) == (runs.runs_folder() / settings.run_name(config), "")


def test_a_folder_of_other_settings_is_never_taken_over(config):
    taken = begun(OTHER, 8, of=config)
    path, note = runs.run_of(config)
    assert path.name == settings.run_name(config, 16)
    assert f"{taken.name} has other settings" in note
    begun(config, 16)
    assert runs.run_of(config)[0] == path
    assert runs.read_config(taken) == OTHER


def test_damaged_settings_of_what_may_be_the_run_are_told(config):
    (begun(config, 8) / runs.CONFIG).write_text("score: [")
    with pytest.raises(UserError, match="not YAML"):
        runs.run_of(config)


def test_train_and_plan_say_where_they_go(tmp_path):
    small = ("data.glyphs.train=4", "data.glyphs.validation=2", "data.glyphs.test=2", "run.steps=1")
    name = settings.run_name(settings.load(None, list(small)))
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    runs.write_config(folder, OTHER)
    text = (folder / runs.CONFIG).read_text()
    command = ["--config", "tiny.yaml", *given(*small)]
    done = vppo("prepare", *command, runs=tmp_path / "runs").succeeded()
    assert f"{name} has other settings" in " ".join(done.out.split())
    plan = vppo("plan", "--json", *command, runs=tmp_path / "runs").succeeded().json
    assert (len(plan["run"]) - len(name), plan["plan"][0]["status"]) == (8, "keep")
    assert (folder / runs.CONFIG).read_text() == text
    assert [p.name for p in folder.iterdir()] == [runs.CONFIG]
    assert list((tmp_path / "runs").glob(f"{name}*/prepare-*"))


def test_models_alone_keep_folders_of_four_digits(config, tmp_path):
    new = runs.models_folder("/a/model")
    old = new.with_name(new.name[:-4])
    assert len(new.name) == len("model-") + 8
    old.mkdir(parents=True)
    runs.write_config(old, settings.load(None, ["model.path=/b/model"]))
    assert runs.models_folder("/a/model") == new
    runs.write_config(old, settings.load(None, ["model.path=/a/model"]))
    assert runs.models_folder("/a/model") == old


def test_a_run_that_began_as_reference_is_found_by_its_settings(config):
    """Hashes once held the mode: two names for the same settings."""
    old = runs.runs_folder() / settings.run_name(config, mode="reference")
    assert old.name != settings.run_name(config)
    old.mkdir(parents=True)
    values = config.model_dump(mode="json") | {"mode": "reference"}
    (old / runs.CONFIG).write_text(yaml.safe_dump(values))
    assert runs.run_of(config) == (old, "")
    assert runs.read_config(old) == config


def test_a_run_of_an_earlier_version_is_found_and_keeps_reading_no_further_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("VPPO_RUNS", str(tmp_path))
    asked = settings.load(None, ["data.source=some/where"])
    values = asked.model_dump(mode="json")
    for section, name in (("data", "extra"), ("data", "image_folders"), ("data", "system_prompt")):
        del values[section][name]
    folder = tmp_path / settings.run_name(asked)
    folder.mkdir()
    (folder / runs.CONFIG).write_text(yaml.safe_dump(values))
    stored = runs.read_config(folder)
    assert stored.data.extra == "none"
    assert runs.run_of(asked) == (folder, "")
    assert as_begun(asked, stored, set()) == stored
    anew = settings.load(None, ["data.source=some/where", "data.extra=all"])
    assert as_begun(anew, stored, set()).data.extra == "all"
    keys = [Chain(one, folder).prepare.key for one in (stored, asked)]
    assert keys[0] != keys[1]
