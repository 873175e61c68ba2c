"""``vppo ledger`` on a finished run: numbers, tables, the page, mistakes; and that nothing there changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, page_data
from command_line import Command, stamps, vppo

from pipelines.ledger.objectives import KNOWN
from pipelines.page import write_page

HOSTILE = "</script><img/src=x/onerror='window.harm=1'>"


@dataclass
class Told:
    """What the command printed, and the page that it wrote."""

    values: dict[str, Any]
    page: Path

    @property
    def step(self) -> dict[str, Any]:
        return self.values["steps"][0]

    def line(self, name: str) -> dict[str, Any]:
        return next(one for one in self.step["objectives"] if one["name"] == name)


@pytest.fixture(scope="module")
def told(finished: tuple[Path, Command], tmp_path_factory: pytest.TempPathFactory) -> Told:
    run, page = finished[0], tmp_path_factory.mktemp("ledger") / "ledger.html"
    before = stamps(run, "**/*")
    command = vppo("ledger", "small", "--step", "2", "--json", "--out", page, runs=run.parent).succeeded()
    assert stamps(run, "**/*") == before
    return Told(command.json, page)


def test_every_objective_is_there_or_said_to_be_left_out(told: Told) -> None:
    names, left_out = told.step["names"], told.step["left_out"]
    assert [name for name in KNOWN if name in names] == names
    assert set(names) | set(left_out) == set(KNOWN)
    assert "published nowhere" in left_out["pepo"]
    assert (told.step["prompts"], told.step["responses"]) == (4, 32)
    assert told.step["logp_moved"] < 1e-5  # the policy is the one that the run scored with


def test_what_must_be_so_of_any_step(told: Told) -> None:
    vppo_, dapo, grpo = map(told.line, ("vppo", "dapo", "grpo"))
    assert vppo_["overlap"] == pytest.approx(1)
    assert vppo_["correlation"] == pytest.approx(1)
    assert vppo_["to_vppo"] == pytest.approx(1)
    assert dapo["to_dapo"] == pytest.approx(1)
    assert (dapo["variance"], dapo["predicted"]) == (1, 1)
    assert dapo["to_vppo"] == pytest.approx(vppo_["to_dapo"])
    assert dapo["overlap"] is grpo["overlap"] is None
    assert vppo_["paper"] == pytest.approx(told.step["kept_share"], rel=0.1)  # times E[alpha^2], near 1
    assert told.line("vppo-tgf")["paper"] == pytest.approx(told.step["kept_share"])
    assert told.line("oracle-k")["shares"]["perception"] == pytest.approx(1)
    for line in told.step["objectives"]:
        assert sum(line["shares"].values()) == pytest.approx(1)
        assert 0 < line["mass"] <= 1 + 1e-9
    for rows in (told.step["overlaps"], told.step["cosines"]):
        assert rows == [list(column) for column in zip(*rows, strict=True)]
    found = told.step["assumptions"]
    assert 250 <= found["tokens"] <= 256
    for value in (found[name] for name in ("cosine", "spread", "kept", "alpha_norm")):
        assert value["low"] <= value["value"] <= value["high"]


def test_the_page_shows_it_and_text_is_only_text(told: Told, tmp_path: Path) -> None:
    data = page_data(told.page)
    entry = data["credit"][0]
    assert len(entry["weights"]) == len(told.step["names"])
    assert {len(values) for values in entry["weights"]} == {len(entry["tokens"])}
    entry["tokens"][0] = data["ledger"]["steps"][0]["disagreements"][0]["text"] = HOSTILE
    entry["problem"] = entry["answer"] = HOSTILE
    title = data.pop("title")
    write_page(tmp_path / "hostile.html", title, data)
    with chromium() as browser:
        opened = browser.open(tmp_path / "hostile.html", width=390, dark=True)
        assert opened.page.locator("#ledger tbody tr").first.locator("th").text_content() == told.step["names"][0]
        assert HOSTILE in opened.page.locator("#credit .strips thead").text_content()
        opened.page.locator("#credit .strips tbody td").first.click()
        assert opened.page.locator("#credit .weights li").count() == len(told.step["names"])
        cell = opened.page.locator("#agreement .heat").last.locator("tbody tr").first.locator("td").first
        assert cell.text_content() == "1.00"
        assert opened.sideways() <= 0
        opened.assert_harmless()


def test_tables_and_no_gradients(finished: tuple[Path, Command]) -> None:
    asked = ("ledger", "--step", "1,3", "--objectives", "entropy-k", "--no-gradients")
    shown = vppo(*asked, runs=finished[0].parent).succeeded().out
    assert shown.index("step 1") < shown.index("step 3")
    assert "entropy-k" in shown
    assert "pgpo" not in shown
    assert "cosine" not in shown
    assert "k E[alpha^2]" in shown
    markdown = vppo(*asked, "--markdown", runs=finished[0].parent).succeeded().out
    assert markdown.startswith("Step 1: 4 prompts x 8 responses")
    assert "| entropy-k | " in markdown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("none",), "run none: no such run"),
        (("small", "--step", "4"), "--step 4: run small has steps 1..3."),
        (("small", "--step", "2.5"), "--step 2.5: names no steps."),
        (("small", "--objectives", "entropy_k"), "Did you mean entropy-k?"),
        (("small", "--set", "update.constants={bata: 1}"), "Did you mean beta?"),
        (("small", "--json", "--latex"), "are different outputs"),
        (("small", "--out", "ledger.pdf"), "names no page"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], expected: str, finished: tuple[Path, Command]) -> None:
    command = vppo("ledger", *arguments, runs=finished[0].parent)
    assert command.code == 2
    assert expected in " ".join(command.err.split())


def test_a_step_that_is_not_on_disk_is_told(finished: tuple[Path, Command]) -> None:
    command = vppo("ledger", "small", "--step", "5", "--set", "run.steps=9", runs=finished[0].parent)
    assert command.code == 2
    assert "--step 5" in command.err
