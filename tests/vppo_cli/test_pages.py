"""The pages for readers: those that are made from the code are as made, links lead somewhere, README is short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from command_line import given, vppo
from reference_pages import PAGES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_from_the_code_is_as_made(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "make docs"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in a link."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_what_a_page_refers_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", prose)
    for link in (a or b for a, b in links):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link
    for name in set(re.findall(r"\bdocs/\w+\.md", text)):
        assert (ROOT / name).is_file(), name


def test_every_page_is_reached_from_the_readme() -> None:
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"docs/\w+\.md", README))


def test_every_target_of_make_is_named_for_a_reader() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    told = README + (ROOT / "docs/development.md").read_text(encoding="utf-8")
    assert [target for target in targets if f"make {target}" not in told] == []


def test_the_readmes_own_config_fits_the_machine_that_it_names(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(# my\.yaml.*?)```", README, re.S)
    (asked,) = re.findall(r"^vppo plan --config my\.yaml (.*?) +# .*it (fits, with .* to spare)$", README, re.M)
    (tmp_path / "my.yaml").write_text(example)
    source = tmp_path / yaml.safe_load(example)["data"]["source"]
    source.parent.mkdir()
    source.write_text('{"question": "How many?", "image": "a.png", "gold": "7"}\n')
    options, told = asked
    command = ("plan", "--config", "my.yaml", *options.split())
    assert f"result     {told} (" in vppo(*command, runs=tmp_path / "runs").succeeded().out
    larger = given("rollout.batch_prompts=64")  # the default, which it has to lower
    assert "result     does not fit" in vppo(*command, *larger, runs=tmp_path / "runs").succeeded().out
