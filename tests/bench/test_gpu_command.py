"""The first command on a GPU, as far as a CPU can tell: its parts at the tiny shape."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pipelines.bench.gpu import __main__ as command
from pipelines.bench.gpu import bundle, part, probe, resume, summary
from pipelines.bench.gpu.place import NotMeasured, Place


@pytest.fixture
def place(tmp_path):
    return Place("tiny", torch.device("cpu"), tmp_path, tmp_path)


def measured(findings):
    found = {}
    part.measure(findings, found.update)
    return found


# -- the parts -------------------------------------------------------------------------------------


def test_what_only_a_gpu_shows_is_left_out_by_name(place, monkeypatch):
    monkeypatch.setattr(probe, "REPEATS", 1)
    found = measured(probe.findings(place))
    assert not [name for name, figures in found.items() if "failed" in figures]
    missing = {name for name, figures in found.items() if figures == {"not measured": "needs CUDA"}}
    assert missing == {
        "kernels started",
        "attention with a mask, cuDNN's kernel",
        "index_add",
        "products of bfloat16 in float32",
    }
    for call in ("prompts", "responses", "windows", "image"):
        figures = found[f"attention, bfloat16: {call}"]
        assert figures["kernel"] == figures["in an update"] == "flash"
        assert figures["first_s"] > 0
    assert found["head, 1,024 tokens"]["bfloat16 error"] > found["head, 1,024 tokens"]["float32 error"]
    assert "TF32_s" not in found["head, 1,024 tokens"]


def test_a_finding_that_fails_costs_no_other():
    def fails():
        raise MemoryError("too little")

    def elsewhere():
        raise NotMeasured("needs CUDA")

    told = []
    findings = {"a": fails, "b": elsewhere, "c": lambda: {"works": True}}
    part.measure(iter(findings.items()), lambda found: told.append(dict(found)))
    assert [list(found) for found in told] == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert told[-1] == {
        "a": {"failed": "MemoryError: too little"},
        "b": {"not measured": "needs CUDA"},
        "c": {"works": True},
    }


def test_runs_that_differ_are_told(tmp_path):
    from safetensors.torch import save_file

    for name, value in (("alone", 1.0), ("killed", 1.5)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor([0.0, value])}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "manifest.json").write_text(name)
    ours, theirs = (resume._contents(tmp_path / name) for name in ("alone", "killed"))
    assert list(ours) == list(theirs) == ["model.safetensors"]
    assert ours != theirs
    files = [tmp_path / name / "model.safetensors" for name in ("alone", "killed")]
    assert resume._furthest(*files) == 0.5
    assert resume._furthest(files[0], tmp_path / "none") == float("inf")


# -- the command -----------------------------------------------------------------------------------


def started(monkeypatch, tmp_path, script, *line):
    """The command, where every part is this script."""
    (tmp_path / "part.py").write_text(script)
    shim = tmp_path / "python"
    shim.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {tmp_path}/part.py "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shim))
    code = command.main([*line, "--shape", "tiny", "--device", "cpu", "--out", str(tmp_path / "out")])
    return code, tmp_path / "out"


PART = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
name, out = sys.argv[1], Path(sys.argv[sys.argv.index("--out") + 1])
found = {"device": "a device", "date": "a day", "versions": {"torch": "2"}, "found": {"x": {"t_s": 0.25}}}
(out / f"{name}.json").write_text(json.dumps(found))
print("here", flush=True)
if name == "bits":
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "profile":
    child = subprocess.Popen(["sleep", "600"])
    (out / "child").write_text(str(child.pid))
    time.sleep(600)
"""


def test_a_part_that_crashes_or_hangs_costs_no_other(monkeypatch, tmp_path, capsys):
    line = ("bits", "profile", "probe", "--limit", "3")
    code, out = started(monkeypatch, tmp_path, PART, *line)
    assert code == 1
    ended = {name: json.loads((out / f"{name}.json").read_text()) for name in line[:3]}
    assert ended["bits"]["ended"] == "exit code -11 (log.txt: here)"
    assert ended["profile"]["ended"] == "ended at its limit of 3 s (log.txt: here)"
    assert ended["probe"]["ended"] == "done"
    # What was found before is kept, and what the part had started is ended with it.
    assert all(found["found"] == {"x": {"t_s": 0.25}} for found in ended.values())
    child = Path("/proc") / (out / "child").read_text()
    if child.parent.is_dir():
        deadline = time.monotonic() + 10
        while child.is_dir() and "(zombie)" not in (child / "status").read_text():
            assert time.monotonic() < deadline, "it goes on"
    text = (out / "summary.md").read_text()
    assert text.startswith("a device, a day; torch 2; `python -m pipelines.bench.gpu bits profile probe")
    assert "|  | x | t 250 ms |" in text
    assert "exit code -11" in capsys.readouterr().out


def test_a_part_that_finds_nothing(monkeypatch, tmp_path):
    code, out = started(monkeypatch, tmp_path, "raise SystemExit('no GPU')", "probe")
    assert code == 1
    assert json.loads((out / "probe.json").read_text())["ended"] == "exit code 1 (log.txt: no GPU)"
    assert "| probe |  | exit code 1 (log.txt: no GPU)" in (out / "summary.md").read_text()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("forward_s", 0.0123, "forward 12.3 ms"),
        ("forward_s", 2e-6, "forward 2 us"),
        ("work_flops", 3.1e13, "work 31 TFLOP/s"),
        ("memory_bytes", 2**31, "memory 2 GiB"),
        ("copy_bytes_per_s", 3e12, "copy 3,000 GB/s"),
        ("tokens_per_s", 1234.5, "tokens 1,234 /s"),
        ("of peak_share", 0.376, "of peak 37.6%"),
        ("the same bits", False, "the same bits: NO"),
        ("memory_bytes", "needs CUDA", "memory: needs CUDA"),
        ("kl_max", 0.0, "kl max 0"),
    ],
)
def test_a_figure_has_its_unit(name, value, text):
    assert summary._figure(name, value) == text


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width, capsys):
    figures = {"kernel": "flash", "top": [1], "long_name_of_one_s": 1.0, "other": "word " * 40}
    parts = {"probe": {"seconds": 2.0, "ended": "done", "found": {"attention, bfloat16": figures}}}
    summary.show(parts, Console(width=width))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert "top" not in " ".join(lines)


# -- the bundle ------------------------------------------------------------------------------------


def test_a_bundle_has_what_packages_say_less_what_is_there(monkeypatch, tmp_path):
    needs = {
        "pydantic": ["pydantic-core==2.1", "typing-extensions>=4", "email-validator; extra == 'email'"],
        "pydantic-core": ["typing-extensions"],
        "math-verify": ["reader[antlr4_9_3]==2; extra == 'antlr4_9_3'", "reader==2"],
        "reader": ["antlr==4.9.3; extra == 'antlr4_9_3'", "antlr==4.13; extra == 'new'", "sympy"],
    }
    asked = []

    def install(site, what, python):
        asked.append(what)
        name, _, version = what.partition("==")
        name = name.partition(">")[0]
        folder = site / f"{name}-{version or 1}.dist-info"
        folder.mkdir(exist_ok=True)
        lines = [f"Requires-Dist: {need}" for need in needs.get(name, [])]
        text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version or 1}", *lines])
        (folder / "METADATA").write_text(text)

    monkeypatch.setattr(bundle, "_install", install)
    bundle.fill(tmp_path, "3.12")
    names = {what.partition("=")[0].partition(">")[0] for what in asked}
    assert {"pydantic", "pyarrow", "math-verify", "reader", "antlr"} <= names
    assert not names & (bundle.BROUGHT | bundle.NOT_ASKED | {"email-validator"})
    assert "pydantic-core==2.1" in asked  # the one that fits
    assert [what for what in asked if what.startswith("antlr")] == ["antlr==4.9.3"]
