"""The page by itself: what is shown is what was given, whatever it holds, and nothing else happens."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, Opened, chromium, page_data, tokens

from pipelines.errors import UserError
from pipelines.page import embedded_json, page, write_page
from pipelines.page.distributions import histogram

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
HOSTILE = [
    "<script>window.harm = 1</script>",
    "</script>",
    "<img src=x onerror='window.harm=2'>",
    "<!--",
    "<!-- <script>",
    "&lt;b&gt;",
    "\u2028",
    "javascript:alert(1)",
    "\ud800",
]


def response(tokens: list[str], **changes: Any) -> dict[str, Any]:
    """A response whose token i has perception i, every second one kept."""
    count = len(tokens)
    return {
        "tokens": tokens,
        "perception": [float(i) for i in range(count)],
        "keep": [i % 2 == 1 for i in range(count)],
        "logp": [-0.5] * count,
        "logp_perturbed": [-2.0] * count,
        "entropy": [0.25] * count,
        "top": [[[token, 0.6, 0.1], ["other", 0.3, 0.2]] for token in tokens],
        "top_perturbed": [[["else", 0.05, 0.7]] for _ in tokens],
        "dependency": 1.0,
        "reward": 1.0,
        "outcome": "correct",
        "answer": "2",
        "truncated": False,
        "advantage": 0.8,
        "shaped_advantage": 0.9,
    } | changes


def entry(*responses: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "step": 1,
        "position": 0,
        "sample_id": "s",
        "problem": "<image>How many?",
        "gold": "2",
        "images": [PIXEL],
        "perturbed": [[PIXEL]],
        "responses": list(responses),
    } | changes


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def shown(browser: Browser, folder: Path, *entries: dict[str, Any], **options: Any) -> Opened:
    write_page(folder / "page.html", "a page", {"viewer": list(entries)})
    return browser.open(folder / "page.html", **options)


def contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2 contrast of two colours."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_json_in_the_page_is_the_value_and_no_markup() -> None:
    value = {"texts": HOSTILE[:-1], "number": 1.5}
    text = embedded_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value
    assert json.loads(embedded_json(HOSTILE[-1])) == HOSTILE[-1]  # a lone surrogate
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded_json(math.nan)


def test_a_title_is_text_and_the_policy_allows_nothing_from_elsewhere() -> None:
    text = page("</title><script>window.harm=1</script>", {})
    assert "<title>&lt;/title&gt;&lt;script&gt;" in text
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in text
    assert text.count("<script") == 2  # the data and the page's own
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "page.html", "one", {"viewer": []})
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.html"]
    entries = [entry(response(["a </script>", "b"]))]
    write_page(tmp_path / "new" / "page.html", "two", {"viewer": entries})
    assert page_data(tmp_path / "new" / "page.html") == {"title": "two", "viewer": entries}
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, OSError)):
        write_page(tmp_path / "file" / "page.html", "one", {})


def test_hostile_text_is_shown_and_does_nothing(browser: Browser, tmp_path: Path) -> None:
    opened = shown(
        browser,
        tmp_path,
        entry(
            response(HOSTILE, answer=HOSTILE[2], top=[[[text, 0.5, 0.5]] for text in HOSTILE], named={"a-b": 0.25}),
            problem="".join(HOSTILE[:3]),
            gold=HOSTILE[0],
            sample_id=HOSTILE[1],
        ),
    )
    for index in range(len(HOSTILE)):
        opened.page.locator(".tokens .token").nth(index).hover()
    assert [token["text"] for token in tokens(opened)][:-1] == HOSTILE[:-1]
    assert HOSTILE[0] in opened.page.inner_text(".problem")
    assert "Reward, a-b 0.25" in " ".join(opened.page.inner_text(".facts-of").split())
    assert opened.page.locator(".viewer script, .viewer b, .tokens img").count() == 0
    opened.page.wait_for_timeout(100)
    opened.assert_harmless()


def test_numbers_are_rounded_as_the_terminal_rounds_them(browser: Browser, tmp_path: Path) -> None:
    opened = shown(browser, tmp_path, entry(response(["a"])))
    script = files("pipelines.page").joinpath("base.js").read_text(encoding="utf-8")
    function = script[script.index("function rounded") :].partition("\n}\n")[0] + "}"
    values = [i * sign / 16 for i in range(200) for sign in (1, -1)] + [100 * i / 70 for i in range(71)]
    for places in range(4):
        call = f"([values, places]) => {{ {function} return values.map((v) => rounded(v, places)); }}"
        found = opened.page.evaluate(call, [values, places])
        assert [text.lstrip("-") for text in found] == [f"{abs(value):.{places}f}" for value in values]


def test_inline_script_is_blocked_were_any_to_get_in(browser: Browser, tmp_path: Path) -> None:
    """The check above would see it: markup put in on purpose is stopped, and the record says so."""
    opened = shown(browser, tmp_path, entry(response(["a"])))
    opened.page.evaluate("""() => {
      const bad = document.createElement("div");
      bad.innerHTML = "<img src='x.png' onerror='window.harm = 1'>";
      document.body.append(bad);
    }""")
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.harm") is None
    assert any("Content Security Policy" in text for text in opened.complaints)


@pytest.mark.parametrize("dark", [False, True])
def test_shades_rise_with_perception_and_text_on_them_is_readable(dark: bool, browser: Browser, tmp_path: Path) -> None:
    opened = shown(browser, tmp_path, entry(response([f"t{i} " for i in range(101)])), dark=dark)
    found = tokens(opened)
    from_page = [token["background"] for token in found]
    top = found[99]["perception"]  # the 99.5 % quantile of 1 .. 100: place floor(0.995 * 99) = 98
    ends = (from_page[0], from_page[-1])
    for token in found:
        share = min(1.0, math.sqrt(token["perception"] / top))
        mixed = [a + (b - a) * share for a, b in zip(*ends, strict=True)]
        assert token["background"] == pytest.approx(mixed, abs=0.004)
        assert contrast(token["ink"], token["background"]) >= 4.5
    assert [token["kept"] for token in found] == [i % 2 == 1 for i in range(101)]
    green = [colour[1] for colour in from_page[:99]]  # from white down, or from black up
    assert green == sorted(green, reverse=not dark)
    assert len(set(green)) == 99
    opened.assert_harmless()


def test_text_and_marks_have_contrast_in_both_themes(browser: Browser, tmp_path: Path) -> None:
    opened = shown(browser, tmp_path, entry(response(["a", "b"])))
    for theme in ("light", "dark"):
        colours = opened.page.evaluate(
            """(theme) => {
          document.documentElement.dataset.theme = theme;
          const probe = document.body.appendChild(document.createElement("i"));
          return Object.fromEntries(["paper", "panel", "ink", "muted", "accent", "good", "bad", "keep",
            "run-0", "run-1", "run-2", "run-3", "run-4", "run-5"].map((name) => {
              probe.style.color = `var(--${name})`;
              return [name, getComputedStyle(probe).color.match(/\\d+/g).map((c) => c / 255)];
            }));
        }""",
            theme,
        )
        paper, panel = colours.pop("paper"), colours.pop("panel")
        for name, colour in colours.items():
            assert contrast(colour, paper) >= (4.5 if "run" not in name else 3.9), (theme, name)
        for name in ("ink", "muted", "accent"):
            assert contrast(colours[name], panel) >= 4.5, (theme, name)


def test_a_token_tells_both_views(browser: Browser, tmp_path: Path) -> None:
    opened = shown(browser, tmp_path, entry(response(["one", " two"])))
    assert "Point at a token" in opened.page.inner_text(".inspector")
    opened.page.locator(".tokens .token").nth(1).hover()
    told = " ".join(opened.page.inner_text(".inspector").split())
    assert "·two 2 of 2, kept" in told
    assert "Perception (kl) 1 nats" in told
    assert "60.7 % (log −0.5)" in told  # e^-0.5
    assert "13.5 % (log −2)" in told  # e^-2
    assert "other 30 % 20 %" in told
    assert "else 5 % 70 %" in told
    assert opened.page.locator(".images img").count() == 2
    opened.assert_harmless()


def test_keys_move_through_responses_prompts_steps_and_tokens(browser: Browser, tmp_path: Path) -> None:
    entries = [
        entry(
            response([f"{step}{prompt}a", "x", "y"]),
            response([f"{step}{prompt}b"]),
            step=step,
            position=prompt,
            problem=f"question {step}{prompt}",
        )
        for step in (1, 2)
        for prompt in (0, 1)
    ]
    opened = shown(browser, tmp_path, *entries)
    press = opened.page.keyboard.press
    first = lambda: tokens(opened)[0]["text"]  # noqa: E731
    assert first() == "20a"  # the latest step
    press("ArrowRight")
    assert first() == "20b"
    press("ArrowRight")  # there is no third
    assert first() == "20b"
    press("ArrowLeft")
    assert first() == "20a"
    press("ArrowDown")
    assert opened.page.inner_text(".problem") == "question 21"
    press("[")
    assert first() == "10a"
    press("]")
    assert first() == "20a"
    press("ArrowUp")
    assert first() == "11a"
    press("j")
    press("j")
    assert opened.page.evaluate("document.activeElement.textContent") == "x"
    press("k")
    press("J")  # the kept one
    assert opened.page.inner_text(".token-head code") == "x"
    for key in ("?", "/"):
        press(key)
        assert opened.page.locator("dialog[open]").count() == 1
        press("Escape")
        assert opened.page.locator("dialog[open]").count() == 0
    before = opened.page.get_attribute("html", "data-theme")
    press("t")
    assert opened.page.get_attribute("html", "data-theme") != before
    opened.assert_harmless()


def test_filter_and_order(browser: Browser, tmp_path: Path) -> None:
    wrong = {"outcome": "wrong", "reward": 0.0}
    opened = shown(
        browser,
        tmp_path,
        entry(
            response(["a"], dependency=0.1, shaped_advantage=0.8),
            response(["b"], dependency=0.3, shaped_advantage=0.85, **wrong),
            response(["c"], dependency=0.2, shaped_advantage=0.4, **wrong),
        ),
        entry(response(["d"], dependency=0.9), position=1),
    )
    names = lambda: opened.page.locator(".chip-name").all_inner_texts()  # noqa: E731
    plain = lambda: [" ".join(name.split()) for name in names()]  # noqa: E731
    assert plain() == ["1 ✓", "2 ✗", "3 ✗"]
    opened.page.click("text=wrong")
    assert plain() == ["2 ✗", "3 ✗"]
    assert tokens(opened)[0]["text"] == "b"
    opened.page.select_option("[aria-label=Order]", "shaping")  # |0.4 - 0.8| before |0.85 - 0.8|
    assert plain() == ["3 ✗", "2 ✗"]
    opened.page.click("[data-filter=all]")
    opened.page.select_option("[aria-label=Order]", "dependency")
    assert plain() == ["2 ✗", "3 ✗", "1 ✓"]
    opened.page.select_option("[aria-label='Responses of']", "run")
    assert plain() == ["1.2.1 ✓", "1.1.2 ✗", "1.1.3 ✗", "1.1.1 ✓"]
    opened.page.select_option("[aria-label='Responses of']", "prompt")
    opened.page.select_option("[aria-label=Prompt]", "1")
    opened.page.click("text=wrong")
    assert "No response is wrong" in opened.page.inner_text(".viewer-main")
    assert not opened.page.is_visible(".tokens")
    opened.assert_harmless()


@pytest.mark.nightly  # 18 s of a browser; a short one's page is looked at by every other test
def test_a_long_response_does_not_freeze_the_page(browser: Browser, tmp_path: Path) -> None:
    words = [f"word{i % 7} " for i in range(20_000)]  # 120,000 characters
    long = response(words, top=None, top_perturbed=None, logp_perturbed=None)
    single = response(["x" * 100_000])
    opened = shown(browser, tmp_path, entry(long, single))
    started = time.monotonic()
    opened.page.keyboard.press("j")  # answers while the rest is still being laid out
    assert "1 of 20000" in opened.page.inner_text(".inspector")
    assert time.monotonic() - started < 5
    assert len(tokens(opened)) == 20_000
    opened.page.keyboard.press("ArrowRight")
    assert len(tokens(opened)[0]["text"]) == 100_000
    assert opened.sideways() == 0
    opened.assert_harmless()


def test_ones_own_example_shows_without_what_only_training_knows(browser: Browser, tmp_path: Path) -> None:
    bare = dict.fromkeys(
        (
            "logp_perturbed",
            "entropy",
            "top",
            "top_perturbed",
            "reward",
            "outcome",
            "answer",
            "truncated",
            "advantage",
            "shaped_advantage",
        ),
        None,
    )
    opened = shown(
        browser,
        tmp_path,
        entry(response(["a", "b"], **bare), step=None, position=None, gold=None, images=[], perturbed=[]),
    )
    opened.page.locator(".tokens .token").nth(1).hover()
    text = opened.page.inner_text("main")
    assert "not recorded" in text
    assert "has no image" in text
    for absent in ("Gold", "Advantage", "Reward", "null", "undefined", "NaN"):
        assert absent not in text
    assert opened.page.inner_text("h1") == "a page"
    assert opened.page.locator("[data-filter], nav a").count() == 0
    opened.assert_harmless()


def test_a_page_without_entries_says_so(browser: Browser, tmp_path: Path) -> None:
    opened = shown(browser, tmp_path)
    assert "No scored response" in opened.page.inner_text("main")
    opened.assert_harmless()


def test_a_view_for_each_response(browser: Browser, tmp_path: Path) -> None:
    other = PIXEL.replace("RAA7", "TAA7")
    opened = shown(browser, tmp_path, entry(response(["a"]), response(["b"]), perturbed=[[PIXEL], [other]]))
    sources = lambda: opened.page.eval_on_selector_all(".images img", "all => all.map(i => i.src)")  # noqa: E731
    assert sources() == [PIXEL, PIXEL]
    opened.page.keyboard.press("ArrowRight")
    assert sources() == [PIXEL, other]


def test_every_mask_is_shown_and_its_numbers_are_its_own(browser: Browser, tmp_path: Path) -> None:
    others = [PIXEL.replace("RAA7", f"{letter}AA7") for letter in "TXZ"]
    by_mask = [
        {
            "perception": [0.0, float(m)],
            "logp_perturbed": [-1.0, -1.0 - m],
            "top": [[["a", 0.6, 0.1 * m]]] * 2,
            "top_perturbed": [[[f"else{m}", 0.05, 0.7]]] * 2,
        }
        for m in (1, 2, 3)
    ]
    several = response(["a", " b"], perception=[0.0, 2.0], masks=by_mask)
    opened = shown(browser, tmp_path, entry(several, perturbed=[[url] for url in others]))
    page = opened.page
    assert page.locator(".masks button").all_inner_texts() == ["mask 1 of 3", "mask 2 of 3", "mask 3 of 3"]
    assert page.eval_on_selector_all(".masks img", "all => all.map(i => i.src)") == others
    assert "the mean over 3 masks" in page.inner_text("#viewer")
    page.locator(".tokens .token").nth(1).click()
    told = lambda: " ".join(page.inner_text(".inspector").split())  # noqa: E731
    assert "Perception (kl), mean of 3 masks 2 nats with mask 1 of 3 1 nats" in told()
    assert "with mask 1 of 3 13.5 % (log −2)" in told()
    page.locator(".masks button").nth(2).click()
    assert "mean of 3 masks 2 nats with mask 3 of 3 3 nats" in told()
    assert "with mask 3 of 3 1.83 % (log −4)" in told()
    assert "else3" in told()
    assert page.inner_text(".pair figure:last-child figcaption") == "mask 3 of 3"
    assert page.get_attribute(".pair figure:last-child img", "src") == others[2]
    assert page.evaluate("document.activeElement.textContent") == "mask 3 of 3"
    page.keyboard.press("m")  # and round again
    assert "with mask 1 of 3 1 nats" in told()
    opened.assert_harmless()


@pytest.mark.parametrize("width", [1440, 390])
def test_a_data_sets_distributions_and_where_they_come_from(width: int, browser: Browser, tmp_path: Path) -> None:
    values = {0: np.array([0.0, 0.1, 0.1, 2.0]), 1: np.array([0.5, 0.6])}
    charts = [
        histogram("By outcome", "share of each", values, "", log=False, names=["correct", HOSTILE[0]]),
        histogram("All", "share", {0: values[0]}, "nats", log=True),
    ]
    table = {"caption": HOSTILE[2], "header": ["a", "b"], "rows": [[HOSTILE[0], "1"]], "bold": [], "right": [0, 1]}
    sections = {
        "line": HOSTILE[0],
        "estimator": "top1_drop",
        "unit": "",
        "figures": {"facts": [["Responses", "6", HOSTILE[2]]], "charts": charts, "tables": [table]},
        "viewer": [entry(response(["a", "b"]))],
        "provenance": {"facts": [["Model", HOSTILE[0]], ["Data", HOSTILE[2] * 9]]},
    }
    write_page(tmp_path / "page.html", HOSTILE[0], sections)
    opened = browser.open(tmp_path / "page.html", width=width)
    page = opened.page
    page.wait_for_selector(".chart svg")
    labels = page.eval_on_selector_all(".chart svg[role=img]", "all => all.map(s => s.getAttribute('aria-label'))")
    assert len(labels) == 2
    assert "correct: a distribution from 0 to 2, most, 50 %, from 0.1 to 0.133" in labels[0]
    assert page.locator(".chart .legend li").all_inner_texts() == ["correct", HOSTILE[0]]
    assert HOSTILE[2] in page.inner_text("#provenance")
    assert page.locator("main script, main img[src=x], #figures b").count() == 0
    page.locator(".tokens .token").nth(1).hover()
    inspected = page.inner_text(".inspector")
    assert "Perception (top1_drop)" in inspected
    assert "1 nats" not in inspected
    assert page.locator("nav a").all_inner_texts() == ["Perception", "Viewer", "Provenance"]
    assert opened.sideways() == 0
    opened.assert_harmless()


def test_without_a_browser_tests_are_skipped_but_fail_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium is installed"), chromium():
        pass
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Chromium is installed"), chromium():
        pass
