r"""The graders behind their processes: verdicts, hostile answers, deaths and restarts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.config.imports import one_command
from pipelines.errors import UserError
from pipelines.grading.graders import GRADERS, GraderPool, check_grader, quick_verdict
from pipelines.grading.processes import GraderProcess, grade_pairs

BOTH, NEITHER = (True, True), (False, False)
RULER, VERIFY = (True, False), (False, True)  # the only one that says True

VERDICTS = [
    # (answer, gold, kind, (mathruler, math-verify))
    ("5", "5", "value", BOTH),
    ("5", "6", "value", NEITHER),
    ("-5", "5", "value", NEITHER),
    ("+5", "5", "value", BOTH),
    ("5.0", "5", "value", BOTH),
    ("0", "0.0", "value", BOTH),
    ("007", "7", "value", BOTH),
    ("3,000", "3000", "value", BOTH),
    (r"\$5", "5", "value", BOTH),
    ("5 cm", "5", "value", BOTH),
    (r"5\text{ cm}", "5", "value", BOTH),
    (r"30^\circ", "30", "value", BOTH),
    ("50%", "50", "value", BOTH),
    (r"50\%", "0.5", "value", VERIFY),
    ("x=5", "5", "value", BOTH),
    ("5.", "5", "value", RULER),
    ("1/2", "0.5", "value", BOTH),
    (r"\frac12", "1/2", "value", BOTH),
    (r"\dfrac{3}{4}", r"\frac34", "value", BOTH),
    ("2/4", "1/2", "value", VERIFY),
    ("1 1/2", "3/2", "value", RULER),
    ("1/3", "0.333", "value", NEITHER),
    (r"2\sqrt{3}", r"\sqrt{12}", "value", BOTH),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", "value", BOTH),
    (r"2\pi", r"\pi*2", "value", BOTH),
    ("3.14", r"\pi", "value", NEITHER),
    ("2^3", "8", "value", VERIFY),
    (r"1.5\times 10^3", "1500", "value", VERIFY),
    ("1+x", "x+1", "value", BOTH),
    ("(x+1)^2", "x^2+2x+1", "value", BOTH),
    ("3<x", "x>3", "value", VERIFY),
    ("(1,2)", "(1,2)", "value", BOTH),
    ("(2,1)", "(1,2)", "value", NEITHER),
    ("[1,2)", "(1,2)", "value", NEITHER),
    (r"\{2,1\}", r"\{1,2\}", "value", VERIFY),
    ("Blue", "blue", "value", BOTH),
    (r"\text{blue}", "blue", "value", BOTH),
    ("no", "yes", "value", NEITHER),
    ("", "5", "value", NEITHER),
    ("a\0b", "5", "value", NEITHER),
    ("\ud800", "5", "value", NEITHER),
    # The project's rule answers before the grader; what it leaves open the grader decides.
    ("A. 5", "A", "choice", BOTH),
    ("A. 5", "A", "value", NEITHER),
    (r"\mathrm{(A)}", "A", "choice", BOTH),
    ("Option B", "A", "choice", NEITHER),
    ("D and B", "BD", "choice", BOTH),
    ("Apple", "A", "choice", NEITHER),
    ("yes", "Yes", "choice", BOTH),
    ("5", "5", "choice", BOTH),
]

PATIENCE_S = 60.0  # how long a test waits for what must happen; nothing measures time


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=2, deadline_s=20.0) as pool:
        yield pool


@pytest.mark.parametrize("column", [0, 1], ids=GRADERS)
@pytest.mark.parametrize(("answer", "gold", "kind", "verdicts"), VERDICTS)
def test_verdicts(
    pool: GraderPool, answer: str, gold: str, kind: str, verdicts: tuple[bool, bool], column: int
) -> None:
    assert pool.grade([(answer, gold, kind)], GRADERS[column]) == [verdicts[column]]


@pytest.mark.parametrize("grader", GRADERS)
def test_quick_verdicts_are_the_graders_own(grader: str) -> None:
    rng = random.Random(0)
    numbers = ["0", "-1", "1", "10", "999999999", "-999999999", "999999998"]
    numbers += [str(rng.randint(-(10 ** rng.randint(1, 9)) + 1, 999)) for _ in range(20)]
    pairs = [(rng.choice(numbers), rng.choice(numbers)) for _ in range(40)]
    odd = ["5", " 5 ", "blue", "{", "}", "a\0b", r"\frac", "1/0", "x" * 999, "(", "é", r"\text{ }"]
    pairs += [(text, text) for text in odd] + [(n, n) for n in numbers]
    process = GraderProcess(deadline_s=20.0, memory_mb=1024)
    verdicts = grade_pairs([process], grader, pairs)
    process.kill()
    quick = [quick_verdict(answer, gold, grader) for answer, gold in pairs]
    assert [(p, q) for p, q in zip(pairs, quick, strict=True) if q is not None] == [
        (p, v) for p, v, q in zip(pairs, verdicts, quick, strict=True) if q is not None
    ]


# Gold is no integer: against one, mathruler compares strictly and evaluates nothing.
GOLD = "0.7"
HOSTILE = [
    "9**9**9",
    "9^9^9",
    "99999999!",
    "99999999!!!!",
    r"9^{9^{9}}",
    r"9^{9^{9^{9}}}",
    r"10^{10^{10}}",
    r"\frac{1}{9^{9^{9}}}",
    "(" * 20 + "9" + "**9)" * 20,
    "2**99999999999",
    "1<<99999999999",
    "fibonacci(10**9)",
    "{" * 10**6,
    "}" * 10**6,
    "{}" * 500_000,
    "{" * 500_000 + "}" * 500_000,
    "{{{{",
    "\\" * 10**6,
    r"\boxed{" * 10**5,
    r"\frac{1}{" * 10_000 + "2" + "}" * 10_000,
    r"\frac" * 10_000,
    "(" * 3000 + "1" + ")" * 3000,
    r"\sqrt{" * 1000 + "2" + "}" * 1000,
    "-" * 100_000 + "1",
    "x" + "^x" * 5_000,
    "a\0b" * 1000,
    "\0",
    "\ud800\udfff",
    "\udfff",
    "__import__('os').abort()",
]
# Computing these takes hours, terabytes, or more stack than there is.
UNDECIDABLE = {
    "mathruler": {"9**9**9", "99999999!", "2**99999999999", "1<<99999999999"},
    "math-verify": {"99999999!", r"9^{9^{9}}", r"9^{9^{9^{9}}}", r"10^{10^{10}}"},
}


@pytest.mark.parametrize("grader", GRADERS)
def test_hostile_answers_time_out_and_the_rest_is_graded(grader: str) -> None:
    easy = [(f"{n}/7", "3/7", "value") for n in range(1, 6)]
    hostile = [(text, GOLD, "value") for text in HOSTILE]
    with GraderPool(workers=2, deadline_s=0.4) as pool:
        verdicts = pool.grade([*easy, *hostile, *easy], grader)
        again = pool.grade([*easy, *easy], grader)
    by_text = dict(zip(HOSTILE, verdicts[len(easy) : -len(easy)], strict=True))
    assert True not in by_text.values()
    assert {text for text in UNDECIDABLE[grader] if by_text[text] is not None} == set()
    right = [False, False, True, False, False]
    assert verdicts[: len(easy)] == right
    assert verdicts[-len(easy) :] == right
    assert again == right * 2


TOWERS = {
    "mathruler": ["9**9**9+{}", "{}99999999!", "2**{}9999999999", "(3/2)**{}999999999"],
    "math-verify": ["9^{{9^{{9}}}}+{}.5", "{}99999999!", "2^{{{}9999999999}}", "9^{{9^{{9^{{{}}}}}}}"],
}


@pytest.mark.parametrize("grader", GRADERS)
def test_hundreds_of_hostile_answers_cost_no_deadlines(grader: str) -> None:
    towers = [(t.format(n), GOLD, "value") for t in TOWERS[grader] for n in range(10, 110)]
    with GraderPool(workers=1, deadline_s=PATIENCE_S) as pool:  # 400 deadlines: seven hours
        pool.grade([("1/2", "0.6", "value")], grader)
        before = pool.pids
        verdicts = pool.grade(towers, grader)
        assert pool.pids == before  # none cost a process either
    assert verdicts == [None] * len(towers)


def test_distinct_deadlines_in_a_row_each_cost_one_process() -> None:
    slow = [(f"{n}999999!", GOLD, "value") for n in range(1, 5)]  # below the limit on numbers
    with GraderPool(workers=2, deadline_s=0.3) as pool:
        verdicts = pool.grade([*slow, ("1/2", "0.5", "value")], "mathruler")
    assert verdicts == [None] * 4 + [True]


UNCHANGED = """
import json, logging, sys
items = json.load(sys.stdin)
if sys.argv[1] == "mathruler":
    from mathruler.grader import grade_answer as compare
else:
    from math_verify import parse, verify
    logging.disable(logging.WARNING)
    def compare(answer, gold):
        parsed = [parse(f"\\\\boxed{{{t}}}", parsing_timeout=None) for t in (gold, answer)]
        return verify(*parsed, timeout_seconds=None)
json.dump([bool(compare(*item)) for item in items], sys.stdout)
"""


def _formula(rng: random.Random, depth: int = 0) -> str:
    a, b = rng.randint(2, 12), rng.randint(2, 50)
    if depth > 1 or rng.random() < 0.4:
        atoms = [
            str(a),
            f"{a}.{b}",
            rf"\frac{{{a}}}{{{b}}}",
            rf"\sqrt{{{b}}}",
            r"\pi",
            "x",
            "y",
            f"x^{a}",
            rf"\sqrt{{{a}x}}",
            r"\sin^2 x",
            r"\cos^2 x",
            rf"\ln({b})",
            r"\sqrt{x^2}",
            "|x|",
            f"{a}/{b}",
            f"({a}x+{b})^2",
            rf"{a}\%",
            rf"{a}^\circ",
            rf"\sqrt[3]{{{b}}}",
            "i",
            r"\infty",
        ]
        return rng.choice(atoms)
    forms = ["{}+{}", "{}-{}", "({})({})", r"\frac{{{}}}{{{}}}", "{}*{}", "{}={}", "({},{})", "{}<{}"]
    return rng.choice(forms).format(_formula(rng, depth + 1), _formula(rng, depth + 1))


def _pair(rng: random.Random) -> tuple[str, str]:
    """An answer that is unrelated, a little off, or the same value written in a longer way."""
    gold, other = _formula(rng), _formula(rng, 2)
    ways = [_formula(rng), f"{gold}+{other}", f"({gold})+{other}-{other}", f"1*({gold})"]
    return rng.choice([*ways, rf"\frac{{{other}({gold})}}{{{other}}}"]), gold


@pytest.mark.parametrize("grader", GRADERS)
def test_what_is_spared_changes_no_verdict(grader: str) -> None:
    """The worker against the package as installed, in a process of its own."""
    rng = random.Random(7)
    pairs = [_pair(rng) for _ in range(15)]
    run = subprocess.run(
        [sys.executable, "-c", UNCHANGED, grader],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=True,
    )
    with GraderPool(workers=1, deadline_s=PATIENCE_S) as pool:
        verdicts = pool.grade([(*pair, "value") for pair in pairs], grader, alone=True)
    real = json.loads(run.stdout)
    assert [(p, v) for p, v, r in zip(pairs, verdicts, real, strict=True) if v != r] == []
    assert 2 < sum(real) < 13


# Process and grader take 60 MiB. 250 MB cannot be had at all: mathruler would swallow the error.
# 100 MB can, but is past three quarters of the limit, where one more such step would be swallowed.
@pytest.mark.parametrize("hungry", ["1<<2000000000", "1<<800000000"])
def test_an_answer_that_needs_too_much_memory_gets_no_verdict(hungry: str) -> None:
    with GraderPool(workers=1, deadline_s=20.0, memory_mb=200) as pool:
        items = [(hungry, r"\sqrt{2}", "value"), ("1/2", "0.5", "value")]
        assert pool.grade(items, "mathruler") == [None, True]


def test_equal_pairs_are_graded_once(pool: GraderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str]] = []

    def spy(processes: object, grader: str, pairs: list[tuple[str, str]]) -> list[bool | None]:
        sent.extend(pairs)
        return grade_pairs(processes, grader, pairs)  # type: ignore[arg-type]

    monkeypatch.setattr("pipelines.grading.graders.grade_pairs", spy)
    items = [("2/3", "4/6", "value"), ("4/8", "0.25", "value")] * 50
    first = pool.grade(items, "math-verify")
    assert first == [True, False] * 50
    assert pool.grade(items, "math-verify") == first
    assert sent == [("2/3", "4/6"), ("4/8", "0.25")]


def test_plain_integers_start_no_process() -> None:
    with GraderPool() as pool:
        items = [("5", "5", "value"), ("6", "5", "value"), ("A. 5", "A", "choice")]
        assert pool.grade(items, "math-verify") == [True, False, True]
        assert pool.pids == []


def test_a_worker_killed_while_idle_is_replaced(pool: GraderPool) -> None:
    pool.grade([("1/9", "2/18", "value")], "mathruler")
    victim = pool.pids[0]
    os.kill(victim, signal.SIGKILL)
    items = [(f"{n}/11", "0.5", "value") for n in range(20)]
    assert pool.grade(items, "mathruler") == [False] * 20
    assert victim not in pool.pids


def test_a_worker_killed_at_work_costs_no_verdict() -> None:
    items = [(f"{n}x+{n}", "17x+17", "value") for n in range(1, 200)]
    with GraderPool(workers=2, deadline_s=20.0) as pool:
        pool.grade([("1/2", "0.5", "value"), *items[:2]], "math-verify")
        killer = threading.Timer(0.1, lambda: os.kill(pool.pids[0], signal.SIGKILL))
        killer.start()
        verdicts = pool.grade(items, "math-verify")
        killer.join()
    assert verdicts == [n == 17 for n in range(1, 200)]


# A plain script without a main guard, as users write them.
PARENT = """
from pipelines.grading.graders import GraderPool
pool = GraderPool(workers=2, deadline_s=600.0)
pool.grade([("1/2", "0.6", "value"), ("1/3", "0.6", "value")], "mathruler")
print(*pool.pids, flush=True)
pool.grade([("9999999!", "x", "value")], "mathruler")
"""


def _eventually(condition) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def _gone(process: psutil.Process) -> bool:
    """Ended; a zombie that nobody has reaped counts as ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_no_worker_outlives_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    before = sum(sum(worker.cpu_times()[:2]) for worker in workers)
    busy = _eventually(lambda: sum(sum(w.cpu_times()[:2]) for w in workers) > before + 0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert workers
    assert busy
    assert _eventually(lambda: all(_gone(worker) for worker in workers))


def test_an_unknown_grader_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"grader: math_verify.*Did you mean math-verify\?"):
        check_grader("math_verify")
    with pytest.raises(UserError, match=r"grader: zzz.*Known: mathruler math-verify"):
        check_grader("zzz")


OWN = """
import os
def same_length(answer, gold):
    print("noise")
    return len(answer) == len(gold)
def moody(answer, gold):
    if answer == "raise":
        raise ValueError(answer)
    if answer == "exit":
        raise SystemExit(3)
    if answer == "die":
        os._exit(1)
    if answer == "busy":
        while True:
            pass
    if answer == "deep":
        return moody2(answer)
    return {"none": None, "text": "yes", "one": 1, "zero": 0.0}.get(answer, answer == gold)
def moody2(answer):
    return moody2(answer)
def three(answer, gold, third):
    return True
NOT_CALLABLE = 5
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_grader.py").write_text(OWN)
    yield "own_grader"
    sys.modules.pop("own_grader", None)


def test_a_grader_by_import_path_decides(own_module: str) -> None:
    with GraderPool(workers=2) as pool:
        items = [("12", "ab", "value"), ("1", "ab", "value"), ("5", "6", "value"), ("A", "A", "choice")]
        assert pool.grade(items, "own_grader:same_length") == [True, False, True, True]


def test_a_grader_by_import_path_has_the_same_limits(own_module: str) -> None:
    items = [
        (answer, "good", "value")
        for answer in ["good", "raise", "exit", "die", "busy", "deep", "none", "text", "one", "zero", "bad"]
    ]
    with GraderPool(workers=1, deadline_s=0.5) as pool:
        verdicts = pool.grade(items, "own_grader:moody")
    assert verdicts == [True, None, None, None, None, None, None, None, True, False, False]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_grader:three", "cannot be called with two texts.*third"),
        ("own_grader:same_lenght", "has no function 'same_lenght'.*same_length"),
        ("own_grader:NOT_CALLABLE", "has no function"),
        ("no_such_module:f", "cannot be imported"),
        ("own_grader:", "no such part"),
    ],
)
def test_a_wrong_import_path_is_refused(own_module: str, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_grader(path)


def test_a_grader_that_only_the_worker_cannot_load_is_said(own_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", "1")  # which its process has not
    Path("own_grader.py").write_text(f"import os\nos.environ['OWN_KEY']\n{OWN}")
    with GraderPool(workers=1) as pool, pytest.raises(UserError, match=r"own_grader:moody: cannot be loaded \(KeyE"):
        pool.grade([("a", "b", "value")], "own_grader:moody")


ALWAYS = "import helper\ndef same(answer, gold): return {}\n"


@pytest.mark.parametrize("name", ["own_grader.py", "helper.py"])
def test_a_worker_runs_the_source_that_was_imported_or_none(own_module: str, name: str) -> None:
    Path("helper.py").write_text("x = 1\n")
    Path("own_grader.py").write_text(ALWAYS.format(False))
    item, grader = ("a", "b", "value"), "own_grader:same"
    try:
        with GraderPool(workers=1) as pool:
            assert pool.grade([item], grader) == [False]
            Path(name).write_text(ALWAYS.format(True))
            assert pool.grade([("c", "b", "value")], grader) == [False]  # by the worker that is there
            pool.close()
            with pytest.raises(UserError, match=r"own_grader:same: its source was changed.*same command again"):
                pool.grade([("d", "b", "value")], grader)
        with GraderPool(workers=1) as pool, pytest.raises(UserError, match="source was changed"):
            pool.grade([item], grader)  # such as that of evaluations, which starts when training is done
    finally:
        sys.modules.pop("helper", None)


def test_a_pool_that_outlives_a_call_grades_with_what_the_next_one_imports(own_module: str) -> None:
    with GraderPool(workers=1) as pool:
        for verdict in (False, True, False):
            Path("own_grader.py").write_text(f"def same(answer, gold): return {verdict}\n")
            with one_command():
                assert pool.grade([("a", "b", "value")], "own_grader:same") == [verdict]


def test_what_a_grader_does_when_it_is_imported_or_called_does_no_harm(own_module: str) -> None:
    Path("own_grader.py").write_text(
        "import pathlib, sys\n"
        "if 'pytest' not in sys.modules:\n    pathlib.Path(__file__).open('a').write('# edited\\n')\n"
        "def same(answer, gold): return True\n"
    )
    with GraderPool(workers=1) as pool, pytest.raises(UserError, match="own_grader:same: its source was changed"):
        pool.grade([("a", "b", "value")], "own_grader:same")
    Path("own_grader.py").write_text(
        "import os, pathlib\nos.chdir('/')\ndef same(answer, gold): return pathlib.Path('own_grader.py').exists()\n"
    )
    sys.modules.pop("own_grader")
    with GraderPool(workers=1) as pool:
        assert pool.grade([("a", "b", "value")], "own_grader:same") == [True]  # the folder is what it was
    Path("own_grader.py").write_text("import sys\ndef same(answer, gold): sys.exit(0) if gold == 'b' else True\n")
    sys.modules.pop("own_grader")
    with GraderPool(workers=1) as pool:
        pid = pool.grade([("a", "a", "value")], "own_grader:same") and pool.pids
        assert pool.grade([("a", "b", "value")], "own_grader:same") == [None]  # no verdict, at no worker's cost
        assert pool.pids == pid


def test_a_memory_limit_too_small_to_load_is_said() -> None:
    with GraderPool(workers=1, memory_mb=24) as pool, pytest.raises(UserError, match="memory_mb"):
        pool.grade([("1/2", "0.5", "value")], "mathruler")


def test_importing_the_reward_imports_nothing_heavy() -> None:
    heavy = "{'sympy', 'math_verify', 'mathruler', 'torch', 'transformers'}"
    code = f"import sys, pipelines.grading.reward; sys.exit(repr({heavy} & sys.modules.keys() or ''))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() in ("", "''")
