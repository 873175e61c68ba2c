"""The table of objectives, and what is said to settings that do not fit it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command_line import given, vppo

from pipelines.config import settings
from pipelines.config.schema import UpdateConfig
from pipelines.errors import UserError
from pipelines.objectives import table

VAA = "update.objective=pivot-vaa"

WRONG = [
    (["update.objective=pgoo"], ("update.objective: pgoo", "Did you mean pgpo?", "import path")),
    ([VAA], ("pivot-vaa", "constant beta", "no default", "--set 'update.constants={beta: ...}'")),
    (
        ["update.objective=pgpo", "update.constants={taw: 0.3}"],
        ("update.constants.taw", "pgpo has no such constant", "Did you mean tau?", "Known: tau beta"),
    ),
    (
        ["update.objective=tor", "update.constants={perception_share: 1.5}"],
        ("update.constants.perception_share", "1.5 is not in (0, 1]", "The published value is 0.3"),
    ),
    (["update.constants={tau: 0.3}"], ("update.constants.tau", "vppo has no such constant", "Known: none")),
    ([VAA, "update.constants={beta: -1}"], ("update.constants.beta", "-1 is not in [0, inf)", "None was published")),
    (
        ["update.surrogate=sapo", "update.constants={sapo_tau_positive: 0}"],
        ("update.constants.sapo_tau_positive", "0 is not in (0, inf)", "The published value is 1"),
    ),
    (
        ["update.objective=pgpo", "update.variant=exact"],
        ("update.variant: exact", "pgpo has no such variant", "It has paper and code"),
    ),
    (["update.objective=tor", "update.variant=code"], ("update.variant: code", "It has one form only")),
    (
        ["update.objective=pepo", "update.constants={steps: 4, temperature: 0}"],
        ("update.constants.temperature", "0 is not in (0, inf)", "The published value is 1.8"),
    ),
    (["update.objective=vgpo", "update.constants={start: 1}"], ("update.constants.start", "1 is not in [0, 1)")),
    (
        ["update.objective=vepo", "update.loss_average=sequence"],
        ("update.loss_average: sequence", "no meaning with update.objective: vepo", "the tokens that it keeps"),
    ),
    (["update.objective=pgpo", "update.variant=pape"], ("update.variant", "'paper', 'code'")),
    (
        ["update.objective=vepo", "update.surrogate=gspo"],
        ("update.surrogate: gspo", "vepo", "clipping or averaging", "Take update.surrogate=ppo"),
    ),
    (
        ["update.objective=tor", "score.store=perception"],
        ("score.store: perception", "holds no views", "tor needs", "Leave score.store at auto"),
    ),
]


@pytest.mark.parametrize(("wrong", "expected"), WRONG, ids=lambda value: str(value)[:60])
def test_what_does_not_fit_is_refused(wrong: list[str], expected: tuple[str, ...], tmp_path: Path) -> None:
    command = vppo("train", *given(*wrong), runs=tmp_path / "runs")
    assert command.code == 2, command.err
    assert "Traceback" not in command.err
    for words in expected:
        assert words in command.err, command.err
    assert not list((tmp_path / "runs").rglob("manifest.json")), "it was told before any work"


def test_plan_refuses_it_too(tmp_path: Path) -> None:
    command = vppo("plan", *given(VAA), runs=tmp_path / "runs")
    assert command.code == 2
    assert "constant beta" in command.err


def test_plan_refuses_a_misspelt_name_too(tmp_path: Path) -> None:
    told = [vppo(command, *given("update.objective=pgo"), runs=tmp_path / "runs") for command in ("plan", "train")]
    assert [command.code for command in told] == [2, 2]
    assert told[0].err == told[1].err
    for words in ("update.objective: pgo", "Did you mean pgpo?", " random-k entropy-response-k; or an import path"):
        assert words in " ".join(told[0].err.split()), told[0].err


def test_an_alias_is_the_nearest_name() -> None:
    for wrong in ("randomk", "entropy-response", "'a:'", ":b"):
        with pytest.raises(UserError, match="no such part") as caught:
            table.check(settings.load(None, [f"update.objective={wrong}"]))
        assert ("Did you mean" in str(caught.value)) == (":" not in wrong)


@pytest.mark.parametrize("name", ["grpo", "vppo-grpo", "vepo"])
def test_what_an_objective_does_not_read_is_refused_but_at_its_default(name: str) -> None:
    default = UpdateConfig().clip_high
    table.check_read(
        settings.load(None, [f"update.objective={name}", "update.clip_low=0.1", f"update.clip_high={default}"])
    )
    with pytest.raises(UserError) as caught:
        table.check_read(settings.load(None, [f"update.objective={name}", "update.clip_high=0.3"]))
    for words in ("update.clip_high: 0.3", f"update.objective: {name}", "the width update.clip_low", "Leave it out"):
        assert words in str(caught.value)


@pytest.mark.parametrize("name", settings.shipped_configs())
def test_what_is_shipped_fits(name: str) -> None:
    config = settings.load(settings.shipped_config(name))
    table.check(config)
    table.check_read(config)


RIGHT = [
    ["update.constants={beta: 0}", VAA],
    ["update.surrogate=cispo"],
    ["update.objective=grpo", "update.loss_average=sequence"],  # it is what it does
]


@pytest.mark.parametrize("right", RIGHT, ids=str)
def test_what_fits_is_not(right: list[str]) -> None:
    table.check(settings.load(None, right))


@pytest.mark.parametrize("name", table.OBJECTIVES)
def test_a_row_keeps_its_own_rules(name: str) -> None:
    row = table.OBJECTIVES[name]
    assert callable(table.find_objective(name))
    assert row.limits.keys() <= row.constants.keys()
    views = [f"score.perturbation={row.perturbation}"] if row.perturbation else []
    asked = settings.load(None, [f"update.objective={name}", *views])
    for constant, value in row.constants.items():
        others = {other: 1.0 for other, published in row.constants.items() if published is None}
        at = replace_constants(asked, others | {constant: 1.0 if value is None else value})
        table.check(at)
        for never in (float("nan"), float("inf"), -float("inf")):
            with pytest.raises(UserError, match=constant):
                table.check(replace_constants(asked, others | {constant: never}))


def replace_constants(config, constants):
    return config.model_copy(update={"update": config.update.model_copy(update={"constants": constants})})


def test_constants_are_the_published_ones_but_for_those_that_are_set() -> None:
    assert table.constants("pgpo", UpdateConfig(constants={"beta": 3})) == {"tau": 0.4, "beta": 3}
    assert table.variant("pgpo", UpdateConfig(objective="pgpo")) == "paper"
    assert table.variant("pgpo", UpdateConfig(objective="pgpo", variant="code")) == "code"


def test_an_objective_of_ones_own_has_constants_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = settings.load(None, ["update.objective=mine:objective", "update.constants={anything: 3}"])
    table.check(mine)
    with pytest.raises(UserError, match=r"update.constants.anything: nan is not in \(-inf, inf\)"):
        table.check(replace_constants(mine, {"anything": float("nan")}))
    # A row without limits takes any number.
    row = replace(table.OBJECTIVES["pgpo"], limits={})
    monkeypatch.setitem(table.OBJECTIVES, "pgpo", row)
    table.check(settings.load(None, ["update.objective=pgpo", "update.constants={tau: -7}"]))


def test_a_run_that_is_refused_leaves_no_folder(tmp_path) -> None:
    refused = vppo("train", *given("update.objective=pepo"), runs=tmp_path / "runs")
    assert (refused.code, "constant steps" in refused.err) == (2, True)
    assert not list((tmp_path / "runs").glob("*"))
