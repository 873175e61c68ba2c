"""Parts of a user's own that fail: told with their own lines, by name, and never only by a number."""

import importlib
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from command_line import copy_of, given, vppo
from hub_schema import png

from pipelines import runs
from pipelines.chain import Chain
from pipelines.config import resolve as parts
from pipelines.config import settings
from pipelines.config.imports import one_command
from pipelines.config.resolve import find_part
from pipelines.disk.records import ROLLOUTS, SCORES, Rollout, Sample, Scored, read_rows
from pipelines.errors import UserError
from pipelines.live import Session
from pipelines.model import determinism
from pipelines.stages import Ask, make
from pipelines.watch import Silent

PARTS = """
import time
import torch

def broken(responses, samples):
    return [1 / len(r[:0]) for r in responses]

def nothing(statistics, groups, samples):
    return statistics.logp * float("nan")

def short(statistics, groups, samples):
    return statistics.logp[1:]

def loud(statistics, groups, samples):
    return -statistics.logp

def dark(pixels_FCHW, rng):
    return pixels_FCHW * 0.5

def fails(answer, gold):
    raise ValueError("no idea")

def fails_soon(answer, gold):
    return answer == gold or 1 / 0

def equal(responses, samples):
    return [0.5] * len(responses)

def slow(responses, samples):
    time.sleep(0.2)
    return [0.5] * len(responses)

class Strict:
    on = False
    def __enter__(self): Strict.on = True
    def __exit__(self, *error): Strict.on = False

class Own:
    def __init__(self, policy, config, reference): pass
    def update(self, rollouts, scores, samples): return {"strict": Strict.on}
    def save(self, folder): pass
    def load(self, folder): pass
"""


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, with a user's parts beside it."""
    copy = copy_of(finished[0], tmp_path)
    (copy.parent.parent / "ownparts.py").write_text(PARTS)
    return copy


def stage(run, name, *settings):
    return vppo("train", "--run", run.name, "--stage", name, "--steps", "1", *given(*settings), runs=run.parent)


def test_what_a_part_raises_is_told_with_its_own_line(run):
    command = stage(run, "rollout", "reward.function=ownparts:broken")
    assert command.code == 2
    assert "reward.function: ownparts:broken: raised ZeroDivisionError" in command.err
    assert "ownparts.py, line 6, in" in command.err
    assert "return [1 / len(r[:0]) for r in responses]" in command.err
    assert "Traceback" not in command.err


@pytest.mark.parametrize(("name", "told"), [("nothing", "not finite"), ("short", "returned [")])
def test_an_estimator_that_returns_nonsense_is_named(run, name, told):
    command = stage(run, "score", f"score.estimator=ownparts:{name}")
    assert command.code == 2
    assert f"score.estimator: ownparts:{name}" in command.err
    assert told in command.err
    assert "Traceback" not in command.err


@pytest.mark.parametrize("setting", ["score.estimator=ownparts:loud", "score.perturbation=ownparts:dark"])
def test_an_estimator_and_a_perturbation_by_import_path(run, setting):
    before = {path.name for path in run.glob("steps/0001/score-*")}
    stage(run, "score", setting).succeeded()
    own, (first,) = [p for p in run.glob("steps/0001/score-*") if p.name not in before], before
    assert perceived(own[0]) != perceived(run / "steps/0001" / first)


def perceived(folder):
    return [row.perception for row in read_rows(folder / SCORES, Scored)]


def test_a_trainer_by_import_path_updates_in_the_strict_mode(run, monkeypatch):
    monkeypatch.syspath_prepend(run.parent.parent)
    monkeypatch.setattr(determinism, "strict", lambda device: sys.modules["ownparts"].Strict())
    config = settings.load(run / "config.yaml", ["update.engine=ownparts:Own"])
    with closing(Session(Chain(config, run), Silent(), config)) as session:
        assert make(session.ask(session.chain.update(1), config), session, run) == {"strict": True}


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("None", "returned None, not a dict of metrics."),
        ("{'x': float('nan')}", "returned x as nan, not a finite number."),
        ("{'x': torch.tensor(1.0)}", "returned x as a Tensor, not a finite number."),
        ("{'perception_mean': 'zzz'}", "returned perception_mean as a str, not a finite number."),
    ],
)
def test_what_a_stage_returns_is_looked_at(run, returned, told, monkeypatch):
    name = f"stage_{abs(hash(returned))}"
    (run.parent.parent / f"{name}.py").write_text(f"import torch\ndef update(ask, live, out): return {returned}\n")
    monkeypatch.syspath_prepend(run.parent.parent)
    config = settings.load(run / "config.yaml", [f"stages.update={name}:update"])
    with closing(Session(Chain(config, run), Silent(), config)) as session:
        ask = session.ask(session.chain.update(1), config)
        with pytest.raises(UserError, match=rf"stages\.update: {name}:update: ") as raised:
            make(ask, session, run)
    assert told in str(raised.value)


def test_an_engine_without_methods_is_told_before_any_work(run):
    command = stage(run, "rollout", "reward.function=ownparts:equal", "update.engine=ownparts:Strict")
    assert (command.code, "class Strict has no method update and no save and no load." in command.err) == (2, True)


def test_a_grader_that_always_fails_is_said(run):
    refused = stage(run, "rollout", "reward.grader=ownparts:fails")  # before a response reaches it
    assert (refused.code, "came to no verdict on the gold of question" in " ".join(refused.err.split())) == (2, True)
    command = stage(run, "rollout", "reward.grader=ownparts:fails_soon", "rollout.dynamic_sampling=false")
    out = " ".join(command.succeeded().out.split())
    assert "does not take for right the gold" not in out
    assert "step 1: ownparts:fails_soon came to no verdict on" in out


def test_responses_that_are_cut_off_are_said(run):
    command = stage(run, "rollout", "rollout.max_new_tokens=8", "rollout.dynamic_sampling=false").succeeded()
    assert "responses were cut off after 8 tokens (rollout.max_new_tokens)" in " ".join(command.out.split())


def test_a_step_with_nothing_to_learn_from_is_said(run):
    command = stage(run, "rollout", "reward.function=ownparts:equal").succeeded()
    assert "nothing to learn from (all advantages are 0)" in command.out
    command = stage(run, "rollout", "rollout.prompts_per_step=3").succeeded()
    assert "nothing to learn from" not in command.out


def test_a_reward_that_does_not_return_is_told_of(run, monkeypatch, caplog):
    monkeypatch.syspath_prepend(run.parent.parent)
    monkeypatch.setattr(parts, "PATIENCE_S", 0.05)
    config = settings.load(run / "config.yaml", ["reward.function=ownparts:slow"])
    with closing(Session(Chain(config, run), Silent(), config)) as session:
        session.reward(["\\boxed{1}"], [Sample("a", "1?", [], "1")], [False])
    assert "reward.function: ownparts:slow has not returned after 0 s" in caplog.text
    caplog.clear()
    time.sleep(0.1)
    assert not caplog.text  # it has returned


@pytest.mark.parametrize("setting", ["score.estimator", "score.perturbation", "update.objective"])
def test_so_is_any_other_part(run, setting, monkeypatch, caplog):
    monkeypatch.syspath_prepend(run.parent.parent)
    monkeypatch.setattr(parts, "PATIENCE_S", 0.05)
    assert find_part(setting, "ownparts:slow", {})([], []) == []
    assert f"{setting}: ownparts:slow has not returned" in caplog.text


class Broken:
    """Called like a function."""

    def __call__(self, responses, samples):
        return [1 / len(r[:0]) for r in responses]


broken = Broken()


def test_what_an_object_raises_is_told_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "ownobjects", sys.modules[__name__])
    part = find_part("reward.function", "ownobjects:broken", {})
    with pytest.raises(UserError, match=r"ownobjects:broken: raised ZeroDivisionError.*\n.*return \[1 / len"):
        part(["a"], [])


def imported(folder, monkeypatch, name, text):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    (folder / f"{name}.py").write_text(text)
    return find_part("reward.function", f"{name}:reward", {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\nraise ValueError('boom')\n", r"ValueError: boom\).\n.*own_{}.py, line 2, in <module>: raise ValueError"),
        ("import nowhere\n", r"No module named 'nowhere'\).\n.*own_{}.py, line 1, in <module>: import nowhere"),
        ("raise SystemExit(3)\n", r"SystemExit: 3\).\n.*own_{}.py, line 1"),
        ("1\ndef reward(:\n", r"SyntaxError: .*\n.*own_{}.py, line 2, in <module>: def reward"),
    ],
)
def test_a_module_that_raises_when_it_is_imported_is_told_by_line(text, told, tmp_path, monkeypatch):
    name = f"own_{len(text)}"
    with pytest.raises(UserError, match=told.format(len(text))) as error:
        imported(tmp_path, monkeypatch, name, text)
    assert error.value.fix == "Mend it and give the same command again."


@pytest.mark.parametrize("name", ["no_such_module", "no_such_package.inner", "json.nothing", ".relative"])
def test_a_module_that_is_not_there_is_told_so(name):
    with pytest.raises(UserError, match=r"cannot be imported.*Name a module that Python finds") as error:
        find_part("reward.function", f"{name}:reward", {})
    assert "\n" not in error.value.problem


def test_what_a_module_prints_when_it_is_imported_is_no_output(tmp_path, monkeypatch, capsys):
    imported(tmp_path, monkeypatch, "own_loud", "print('hello')\ndef reward(responses, samples): ...\n")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_stage_alone_takes_its_own_settings_and_no_other(run):
    """What a stage's key holds is what made it: a reward asked for decides, a temperature does not."""
    before = set(run.glob("steps/0001/*"))
    stage(run, "rollout", "reward.function=ownparts:equal").succeeded()
    (made,) = set(run.glob("steps/0001/*")) - before
    assert {x for row in read_rows(made / ROLLOUTS, Rollout) for x in row.reward} == {0.5}
    (first,) = run.glob("steps/0001/score-*")
    was = (first / SCORES).read_bytes()
    command = vppo(
        "train",
        "--run",
        run.name,
        "--stage",
        "score",
        "--steps",
        "1",
        "--force",
        *given("rollout.temperature=0.5"),
        runs=run.parent,
    )
    command.succeeded()
    assert (first / SCORES).read_bytes() == was


def test_an_evaluation_of_a_run_takes_the_engine_that_is_asked_for(finished):
    """Where and by what is sampled is a matter of now; what is sampled is the run's."""
    chain = Chain(runs.read_config(finished[0]), finished[0])
    asked = settings.load(
        base=chain.config.model_dump(),
        overrides=[
            "rollout.server=http://node7:8000",
            "rollout.memory_fraction=0.7",
            "rollout.tensor_parallel=2",
            "rollout.temperature=0.5",
        ],
    )
    with closing(Session(chain, Silent(), asked)) as session:
        ours = session.config.rollout
    assert (ours.server, ours.memory_fraction, ours.tensor_parallel) == ("http://node7:8000", 0.7, 2)
    assert ours.temperature == chain.config.rollout.temperature


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current folder, into which ``write(name, text)`` puts a file; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    yield write
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__spec__", "")):
            del sys.modules[name]


PAYS = "import helper\ndef f(responses, samples): return [{} + helper.x]\n"


def paid(part="nb:f"):
    """What a call that begins now pays, and by which key."""
    config = settings.load(None, [f"reward.function={part}"])
    return find_part("reward.function", part, {})([""], []), Chain(config, Path("runs/any")).rollout(1).key


def test_a_call_begins_with_what_is_on_disk_and_stays_with_it(project):
    """Edits of the same size within one second: what Python compiled passes for them."""
    project("nb.py", PAYS.format(1))
    project("helper.py", "x = 0\n")
    with one_command():
        pay, first = paid()
        assert pay == [1]
        project("nb.py", PAYS.format(2))
        assert paid() == ([1], first)
        with one_command():  # within it, such as a look at its samples
            assert paid() == ([1], first)
    with one_command():
        pay, second = paid()
    project("helper.py", "x = 3\n")
    with one_command():
        last, third = paid()
    assert (pay, last) == ([2], [5])
    assert len({first, second, third}) == 3
    project("nb.py", PAYS.format(1))
    project("helper.py", "x = 0\n")
    with one_command():
        assert paid() == ([1], first)


def test_parts_that_share_a_helper_share_the_new_one(project):
    for name in ("src/one.py", "src/two.py"):
        project(name, "from src import helper\nlist_ = helper.list_\ndef f(responses, samples): return helper.list_\n")
    project("src/helper.py", "list_ = [1]\n")
    project("calm.py", "def f(responses, samples): return [0]\n")
    with one_command():
        one, two = paid("src.one:f")[0], paid("src.two:f")[0]
        assert one is two
        paid("calm:f")
        calm = sys.modules["calm"]
    project("src/helper.py", "list_ = [2]\n")
    with one_command():
        one, two = paid("src.one:f")[0], paid("src.two:f")[0]
        assert one is two
        assert one == [2]
        paid("calm:f")
        assert sys.modules["calm"] is calm  # and what it keeps, such as a judge that took minutes to load


def test_what_others_imported_before_an_edit_is_imported_anew(project):
    project("nb.py", PAYS.format(1))
    project("helper.py", "x = 0\n")
    importlib.import_module("nb")  # by the user's own script
    project("nb.py", PAYS.format(2))
    assert paid()[0] == [2]


def test_a_helper_that_was_edited_meanwhile_is_not_mixed_in(project):
    project("nb.py", PAYS.format(1))
    project("late.py", PAYS.format(7))
    project("helper.py", "x = 0\n")
    with one_command():
        paid()
        project("helper.py", "x = 1\n")
        with pytest.raises(UserError, match="late:f: its source was changed while the command ran"):
            paid("late:f")


def test_a_helper_that_is_imported_when_it_is_needed_is_the_one_that_keys_name(project):
    project("nb.py", "def f(responses, samples):\n    from helper import x\n    return [x]\n")
    project("helper.py", "x = 1\n")
    with one_command():
        pays = find_part("reward.function", "nb:f", {})
        project("helper.py", "x = 2\n")
        with pytest.raises(UserError, match="nb, import helper: its source was changed while the command ran"):
            pays([""], [])
    with one_command():
        assert paid()[0] == [2]


def test_a_reload_between_two_calls_is_the_users_own(project):
    project("nb.py", PAYS.format(1))
    project("helper.py", "x = 0\n")
    with one_command():
        _, first = paid()
    project("nb.py", PAYS.format(2))
    importlib.reload(sys.modules["nb"])
    with one_command():
        pay, second = paid()
    assert pay == [2]
    assert first != second


def test_a_module_that_failed_leaves_no_helper_behind(project):
    project("nb.py", "import helper\n1 / 0\n")
    project("helper.py", "x = 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        paid()
    project("helper.py", "x = 5\n")
    project("nb.py", PAYS.format(1))
    assert paid()[0] == [6]


@pytest.mark.parametrize("face", ["train", "perceive", "score"])
def test_each_call_of_the_python_face_begins_anew(project, monkeypatch, face):
    import vppo

    project("nb.py", PAYS.format(1))
    project("helper.py", "x = 0\n")
    assert paid()[0] == [1]
    project("nb.py", PAYS.format(2))
    calls = {
        "train": ("pipelines.run", "train", lambda: vppo.train({"reward.function": "nb:f", "run.steps": 1})),
        "perceive": ("pipelines.perceive.one", "opened", lambda: vppo.perceive("tiny", png(1), "How many?")),
        "score": ("pipelines.perceive.many", "opened", lambda: vppo.score("tiny", [{"prompt": "1 + 1?"}])),
    }
    where, name, call = calls[face]

    def seen(*_, **__):
        raise LookupError(paid()[0])

    monkeypatch.setattr(importlib.import_module(where), name, seen)
    with pytest.raises(LookupError, match="2"):
        call()


def test_a_part_that_ends_the_process_is_told(project):
    project("out.py", "import sys\ndef f(responses, samples):\n    sys.exit(0)\n")
    with pytest.raises(UserError, match=r"out:f: raised SystemExit: 0\n.*out.py, line 3, in f: sys.exit\(0\)"):
        paid("out:f")


def test_a_stage_in_which_something_ends_the_process_is_told(project, monkeypatch):
    monkeypatch.setattr("pipelines.stages.find", lambda *_: lambda ask, live, out: sys.exit("no key"))
    ask = Ask("score", "score", 3, settings.load(None), {}, Silent())
    with pytest.raises(UserError, match=r"score 3: raised SystemExit: no key\n.*in <lambda>"):
        make(ask, None, Path())


def test_a_part_does_not_move_the_current_folder(project, tmp_path):
    project("away/here.txt", "")
    moving = f"import os\nos.chdir({str(tmp_path / 'away')!r})\n"
    project("moves.py", f"{moving}def f(responses, samples):\n    os.chdir('away')\n    return [1]\n")
    assert paid("moves:f")[0] == [1]
    assert Path.cwd() == tmp_path
    project("fails.py", f"{moving}1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        paid("fails:f")
    assert Path.cwd() == tmp_path
