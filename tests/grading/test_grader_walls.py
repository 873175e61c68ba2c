"""Answers are data: the guard before sympy, the contained worker, and each with the other switched off."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import tokenize
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attacks import ATTACKS, docstring, exploit, payloads
from command_line import vppo
from fuzz_graders import campaign

from pipelines.bench.grading import changed_table, changed_verdicts, pairs_of
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.grading import processes as grader_processes
from pipelines.grading.graders import GRADERS, GraderPool
from pipelines.grading.guard import _GREEK, _NAME, Refused, check_code, check_compiled, check_text
from pipelines.grading.processes import GraderProcess, Walls, grade_pairs

GOLD = "0.7"  # no integer and no letter: mathruler hands any answer to sympy that its guard lets pass
linux = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")


@pytest.fixture
def listener() -> Iterator[tuple[socket.socket, int]]:
    """A server on this machine and its port; whether anything connected, ``connected`` says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server, server.getsockname()[1]


def connected(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.fixture(scope="module")
def letters() -> str:
    return docstring()


# --- each wall alone --------------------------------------------------------------------------------


@linux
def test_exploits_meet_two_walls(
    letters: str, tmp_path: Path, listener: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them works where both walls are off, and either wall alone holds it."""
    monkeypatch.chdir(tmp_path)
    server, port = listener
    canary = tmp_path / "canary"
    pairs = []
    for code in payloads("canary", port).values():  # written twice: sympy remembers what it evaluated
        pairs += [(exploit(code, letters), GOLD), (GOLD, exploit(f"({code})", letters))]

    def harms(walls: Walls) -> list[bool]:
        found = []
        with GraderPool(workers=1, walls=walls) as pool:
            for answer, gold in pairs:
                items = [("1/2", "0.5", "value"), (answer, gold, "value"), ("1/3", "2/6", "value")]
                checked = [*items, ("3/4", "0.75", "value")]
                verdicts = pool.grade(checked, "mathruler", alone=True)
                assert (verdicts[0], verdicts[2:]) == (True, [False, True])
                # Two processes that answer at once get no verdict; or else the second is there.
                forked = any(psutil.Process(pid).children() for pid in pool.pids)
                forked = forked or verdicts[1] is None
                found.append(connected(server) or canary.exists() or forked)
                assert verdicts[1] is not True
                canary.unlink(missing_ok=True)
            assert pool.refused == (len(pairs) if walls.guarded else 0)
        return found

    assert harms(Walls(guarded=False, contained=False)) == [True] * len(pairs)
    for walls in (Walls(guarded=False), Walls(contained=False), Walls()):
        assert harms(walls) == [False] * len(pairs)


@linux
def test_a_worker_tries_what_it_should_be_unable_to_do() -> None:
    with GraderPool(workers=1) as pool:
        held = pool.try_walls()
    assert held.means["seccomp"] == ""  # every Linux that this is tested on has it
    assert held.means["resource limits"] == ""
    assert set(held.refused.values()) == {True}
    open_worker = GraderProcess(5.0, 1024, Walls(contained=False)).try_walls()
    assert set(open_worker.refused.values()) == {False}  # the attempts are real


PROBES = """
import os, socket, subprocess, sys, threading
SECRET = "no"
def probe(answer, gold):
    if answer == "read":
        return open(__file__).read().count("SECRET") > 0
    if answer == "thread":
        found = []
        threads = [threading.Thread(target=found.append, args=(1,)) for _ in range(3)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        return len(found) == 3
    if answer == "import":
        import colorsys
        return True
    if answer == "environment":
        return not os.environ and not {n for n in open("/proc/self/environ").read().split("\\0")
                                       if n and not n.startswith(("PYTHON", "LD_LIBRARY_PATH"))}
    if answer == "descriptors":
        return len(os.listdir("/proc/self/fd")) <= 5
    if answer == "print":
        print("T" * 50, flush=True)
        os.write(1, b"T\\0\\0\\0\\0" * 50)
        return False
    try:
        {
            "write": lambda: open(gold, "w"),
            "append": lambda: open(gold, "a"),
            "update": lambda: open(__file__, "r+"),
            "mkdir": lambda: os.mkdir(gold),
            "remove": lambda: os.remove(__file__),
            "rename": lambda: os.rename(__file__, gold),
            "chmod": lambda: os.chmod(__file__, 0),
            "truncate": lambda: os.truncate(__file__, 0),
            "symlink": lambda: os.symlink(__file__, gold),
            "temporary": lambda: os.open(os.path.dirname(gold), os.O_TMPFILE | os.O_RDWR),
            "socket": lambda: socket.socket(),
            "unix": lambda: socket.socket(socket.AF_UNIX),
            "fork": lambda: os.fork(),
            "run": lambda: subprocess.run(["true"]),
            "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
            "exec": lambda: os.execv("/bin/true", ["true"]),
            "kill": lambda: os.kill(os.getppid(), 0),
            "limits": lambda: __import__("resource").setrlimit(7, (9, 9)),
            "memory file": lambda: os.memfd_create("x"),
        }[answer]()
    except (PermissionError, ValueError):
        return True
    return False
"""


@linux
def test_a_grader_of_ones_own_reads_and_computes_but_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TOKEN", "secret")
    module = tmp_path / "probes.py"
    module.write_text(PROBES)
    tried = re.findall(r'"([a-z ]+)": lambda', PROBES)
    answers = [*tried, "read", "thread", "import", "environment", "descriptors"]
    items = [(answer, str(tmp_path / "made"), "value") for answer in answers]
    with GraderPool(workers=1) as pool:
        verdicts = pool.grade([*items, ("print", "x", "value")], "probes:probe")
    sys.modules.pop("probes", None)
    assert dict(zip(answers, verdicts, strict=False)) == dict.fromkeys(answers, True)
    assert verdicts[-1] is False  # what it prints is no reply
    assert {path.name for path in tmp_path.iterdir()} <= {"probes.py", "__pycache__"}
    assert module.read_text() == PROBES


def test_our_graders_are_guarded_within_a_grader_of_ones_own(
    tmp_path: Path, letters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "wrapped.py").write_text(
        "from mathruler.grader import grade_answer\ndef judge(answer, gold):\n    return grade_answer(answer, gold)\n"
    )
    attack = exploit(payloads("canary", 0)["write"], letters)
    with GraderPool(workers=1, walls=Walls(contained=False)) as pool:
        items = [("1/2", "0.5", "value"), (attack, GOLD, "value")]
        assert pool.grade(items, "wrapped:judge") == [True, False]
    sys.modules.pop("wrapped", None)
    assert not (tmp_path / "canary").exists()


# --- every way in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grader", GRADERS)
def test_no_attack_is_right_and_none_takes_a_worker(grader: str) -> None:
    with GraderPool(workers=1, deadline_s=20.0) as pool:
        pool.grade([("1/2", "0.6", "value")], grader)
        before = pool.pids
        found = pool.grade([(attack, GOLD, "value") for attack in ATTACKS], grader, alone=True)
        golds = pool.grade([(GOLD, attack, "value") for attack in ATTACKS], grader, alone=True)
        assert pool.pids == before
    assert [a for a, *v in zip(ATTACKS, found, golds, strict=True) if True in v] == []


def test_a_data_set_and_a_journal_run_nothing(tmp_path: Path, letters: str) -> None:
    runs, canary = tmp_path / "runs", tmp_path / "canary"
    attack = exploit(payloads("canary", 0)["write"], letters)
    sample = make_samples("test", 1, 0, GlyphsOptions())[0]
    (tmp_path / "a.png").write_bytes(sample.images[0])
    boxed = f"\\boxed{{{attack}}}"
    rows = [
        {"image": "a.png", "problem": "<image>1?", "answer": GOLD, "response": boxed},
        {"image": "a.png", "problem": "<image>2?", "answer": attack, "response": "\\boxed{0.7}"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vppo(
        "perceive",
        "--dataset",
        tmp_path / "q.jsonl",
        "--columns",
        "response=response",
        "--out",
        tmp_path / "seen",
        runs=runs,
    ).succeeded()
    about = json.loads((tmp_path / "seen" / "about.json").read_text())
    assert (about["graded"], about["correct"]) == (2, 0)
    assert not canary.exists()

    table = pa.Table.from_pylist(
        [
            {
                "images": [{"bytes": sample.images[0], "path": None}],
                "problem": "<image>1?",
                "answer": gold,
                "id": number,
            }
            for number, gold in enumerate((GOLD, attack))
        ]
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "geo3k.parquet")
    asked = [
        "eval",
        "--benchmarks",
        "geo3k",
        "--model",
        "tiny",
        "--data-dir",
        tmp_path / "data",
        "--samples",
        "1",
        "--max-new-tokens",
        "4",
    ]
    vppo(*asked, runs=runs).succeeded()
    (journal,) = runs.rglob("journals/*.jsonl")
    entries = _rewritten(journal, [boxed, "\\boxed{0.7}"])
    vppo(*asked, "--regrade", runs=runs).succeeded()
    (results,) = runs.rglob("eval/0000/geo3k-*/results.json")
    found = json.loads(results.read_text())
    assert len(entries) == 2
    assert found["outcomes"]["wrong"] == 2
    told = [warning for warning in found["warnings"] if "no formula" in warning]
    assert len(told) == 1  # math-verify has no way from these to sympy's parser
    assert told[0].startswith("mathruler: 2 answers")
    assert not canary.exists()


def _rewritten(journal: Path, responses: list[str]) -> list[object]:
    """Put these responses into a journal, in the order of its questions, as its writer would."""
    from evals.journal import _line, read_journal

    entries = [entry for entries in read_journal(journal).values() for entry in entries]
    entries.sort(key=lambda entry: entry.question)
    changed = [
        type(entry)(**{**asdict(entry), "response": response, "truncated": False})
        for entry, response in zip(entries, responses, strict=True)
    ]
    journal.write_text("".join(map(_line, changed)))
    return list(changed)


# --- the guard --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "60.",
        "625.",
        "(1/2)-(0.5)",
        "2.x",
        ".5",
        "5!",
        "x**2+y_1",
        "sqrt(3)*2",
        "0.2[3]",
        "2*α+β",
        "1e-5",
        "(x)\n+1",
        "1<<5",
        "(1,2)",
        "[1,2]",
        "3 x",
        "1<x",
        "0x1f",
    ],
)
def test_formulas_pass(text: str) -> None:
    check_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "().a",
        "x.y",
        "1.5.real",
        "1..a",
        "x1.real",
        "x__y",
        "'a'",
        'f"a"',
        "x[1]",
        "sqrt(2)[0]",
        "1or(2)",
        "lambda:0",
        "ⅽ",
        "x²",
        "ｘ",
        "＿",
        "ª",
        "(x:=1)",
        "{1}",
        "#",
        "...",
        "x . y",
        "None",
        "Ω",
    ],
)
def test_what_could_be_code_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        check_text(text)


@pytest.mark.parametrize("text", ["x=5", "1:2", "5;", "30°", "5'", "≈3", "$5", "(1", "a?"])
def test_what_is_neither_formula_nor_code_is_no_refusal(text: str) -> None:
    with pytest.raises((SyntaxError, tokenize.TokenError)):
        check_text(text)


def test_nothing_that_passes_is_folded_by_unicode() -> None:
    passing = [c for c in map(chr, range(0x110000)) if _NAME.fullmatch(c)]
    assert len(passing) == 2 * 26 + 1 + 24
    assert all(unicodedata.normalize("NFKC", c) == c for c in passing)
    assert not any("\\" in c for c in _GREEK)


@pytest.mark.parametrize(
    "code",
    [
        "Symbol('x').name",
        "exec('1')",
        "Symbol('x')[0]",
        "(lambda: 0)()",
        "f'{1}'",
        "'a'*3",
        "sqrt(*(1,))",
        "sqrt(x=1)",
        "[x for x in (1,)]",
        "1 if 1 else 2",
        "sqrt('1')",
        "Symbol(('x'))+'y'",
        "b'1'",
        "None",
        "(x := 1)",
        "...",
    ],
)
def test_what_the_parser_made_is_checked_as_well(code: str) -> None:
    with pytest.raises((Refused, SyntaxError)):
        check_code(code, {"Symbol", "sqrt", "x"})
    check_code("Integer (2 )*Symbol ('x' )+sqrt (Float ('1.5' ))", {"Integer", "Symbol", "sqrt", "Float"})


def test_names_of_functions_cannot_become_code() -> None:
    check_compiled("def _generated(x):\n    return x**2 + sin(x) + max(x, 1)\n")
    for body in ("exec(x)", "__import__('os')", "x.real", "(lambda: x)()", "open(x)"):
        with pytest.raises(Refused):
            check_compiled(f"def _generated(x):\n    return {body}\n")


ROWS = r"""# answer, gold and what mathruler as published says: answers of public models
answer	gold	mathruler
60.	60	1
625.	625	1
\text{(D) } G	D	0
400 \mathrm{~cm}^{2}	400	0
G+J = 6	6	0
\frac{1}{2}	1:2	0
17\%	17	1
j=2	2	1
160^{\circ}	160	1
26 \text{ square units}	26	1
\text{(E)}	E	1
m\angle J+m\angle H =180\degree.	180	0
2\alpha+1	1+2\alpha	1
0.[3]	1/3	1
1+\sqrt{3}	\sqrt{3}+1	1
"""


def test_the_guard_changes_no_verdict_on_real_answers(tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text(ROWS)
    pairs = pairs_of(file)
    published = [line.split("\t")[2] == "1" for line in ROWS.splitlines()[2:]]
    with GraderPool(workers=1) as pool:
        items = [(*pair, "value") for pair in pairs]
        assert pool.grade(items, "mathruler") == published
        assert pool.refused == 0
    odd = ("frac('0.5')", "1/2")  # a text in the text: sympy evaluates that as well
    assert [(c.answer, c.published, c.ours) for c in changed_verdicts([*pairs, odd], "mathruler", 1)] == [
        ("frac('0.5')", True, False)
    ]
    table = changed_table({"rows": [odd]}, 1)
    assert "| rows | `mathruler` | 1 | 1 |" in table
    assert "| `mathruler` | `frac('0.5')` | `1/2` | True | False |" in table


# --- replies and deadlines --------------------------------------------------------------------------

SHIFTING = """
import os, time
def judge(answer, gold):
    if answer == "fork" and os.fork() == 0:
        return True  # two processes answer from here on
    if answer == "forge":
        for fd in range(3, 9):
            try:
                os.write(fd, b"T\\0\\0\\0\\0T\\0\\0\\0\\1")
            except OSError:
                pass
    if answer == "sleep":
        time.sleep(300)
    if answer == "wait":
        end = time.monotonic() + float(gold)
        while time.monotonic() < end:
            time.sleep(0.01)
        return True
    return answer == gold
"""


@pytest.fixture
def shifting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shifting.py").write_text(SHIFTING)
    yield "shifting:judge"
    sys.modules.pop("shifting", None)


@pytest.mark.parametrize("trick", ["fork", "forge"])
def test_no_answer_shifts_the_verdicts_of_others(shifting: str, trick: str) -> None:
    answers = [str(n % 3) for n in range(60)]
    answers[20] = answers[41] = trick
    processes = [GraderProcess(20.0, 1024, Walls(contained=False))]
    verdicts = grade_pairs(processes, shifting, [(answer, "1") for answer in answers])
    processes[0].kill()
    for answer, verdict in zip(answers, verdicts, strict=True):
        if answer != trick:
            assert verdict is (answer == "1")
    if trick == "forge":  # wrong, or given up
        assert True not in (verdicts[20], verdicts[41])


def test_a_stopped_worker_is_waited_for(shifting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of an answer, for longer than its deadline and all patience."""
    monkeypatch.setattr(grader_processes, "patience_s", lambda deadline_s: 1.0)
    monkeypatch.setattr(grader_processes, "_TICK_S", 0.1)
    with GraderPool(workers=1, deadline_s=0.9) as pool:
        assert pool.grade([("1", "1", "value")], shifting) == [True]
        (worker,) = pool.pids

        def stop() -> None:
            time.sleep(0.2)
            os.kill(worker, signal.SIGSTOP)
            time.sleep(2.5)
            os.kill(worker, signal.SIGCONT)

        stopper = threading.Thread(target=stop)
        stopper.start()
        items = [("wait", "0.6", "value"), ("2", "2", "value"), ("2", "3", "value")]
        assert pool.grade(items, shifting) == [True, True, False]
        stopper.join()
        assert pool.pids == [worker]


def test_waiting_costs_no_deadline_but_does_not_last_for_ever(shifting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with GraderPool(workers=1, deadline_s=0.2) as pool:
        assert pool.grade([("wait", "0.6", "value")], shifting) == [True]
    monkeypatch.setattr(grader_processes, "patience_s", lambda deadline_s: 0.5)
    monkeypatch.setattr(grader_processes, "_TICK_S", 0.1)
    with GraderPool(workers=1, deadline_s=0.2) as pool:
        items = [("1", "1", "value"), ("sleep", "1", "value"), ("2", "2", "value")]
        assert pool.grade(items, shifting) == [True, None, True]


# --- and all of it at once --------------------------------------------------------------------------


@linux
def test_some_generated_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = campaign(answers=60, seed=1, deadline_s=0.5, workers=2)
    assert told["broken"] == []
    assert set(told["refused"]) == set(GRADERS)
    assert told["refused"]["math-verify"] < 10  # it has other parsers
    assert told["refused"]["mathruler"] > 5


@linux
def test_the_campaign_finds_what_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_walls = Walls(guarded=False, contained=False)
    told = campaign(30, 3, 1.0, 1, graders=GRADERS[:1], walls=open_walls)
    assert any("written" in found for found in told["broken"])
