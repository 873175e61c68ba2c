"""What was committed is what is read: damage of any file of a run is named, and never used."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from command_line import SMALL, Command, contents, copy_of, given, vppo
from flip_proof import Run, left_locked, readers_proof, runs_proof, undo

from evals.compare import load
from evals.journal import Entry, append, damage, read_journal
from pipelines import runs
from pipelines.chain import Chain
from pipelines.config import settings
from pipelines.config.settings import shipped_config
from pipelines.contents import SEAL, intact, sealed
from pipelines.disk.records import Rollout, Scored, read_rows, write_rows
from pipelines.disk.step import MANIFEST, Step, commit, file_hash, read_manifest
from pipelines.errors import UserError
from pipelines.grading.reward import make_reward
from pipelines.live import Session
from pipelines.model.finite import first_not_finite
from pipelines.model.load import load_policy
from pipelines.stages import make
from pipelines.watch import Silent
from vppo_cli.screen.glance import lines, look

Finished = tuple[Path, Command]


@pytest.fixture
def run(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small finished run, as the latest of its folder."""
    copy = copy_of(finished[0], tmp_path)
    monkeypatch.setenv("VPPO_RUNS", str(copy.parent))
    return copy


@pytest.fixture
def begun(run: Path) -> Path:
    """The same with work left: the last checkpoint and evaluations, the update being replayed."""
    undo(run)
    return run


def chain_of(run: Path) -> Chain:
    return Chain(runs.read_config(run), run)


def one(run: Path, pattern: str) -> Path:
    (found,) = run.glob(pattern)
    return found


def replace(path: Path, pattern: str, value: str) -> None:
    """Change the first match, which has to be there."""
    text = path.read_text()
    changed = re.sub(pattern, value, text, count=1)
    assert changed != text
    path.write_text(changed)


def refused(command: Command, *texts: str | Path) -> None:
    assert command.code == 2, f"exit code {command.code}\n{command.out}\n{command.err}"
    assert "Traceback" not in command.err
    for text in texts:
        assert str(text) in command.err


# -- files that a manifest lists -------------------------------------------------------------------


def silent_flip(path: Path) -> bytes:
    """The file with a bit flipped so that Parquet, its page checksums included, notices nothing.

    A page's header, which no checksum covers, says how many values it holds (a varint, then PLAIN).
    """
    whole, table = path.read_bytes(), pq.read_table(path)
    counts = [m.start(1) for m in re.finditer(rb"\x1c\x15([\x80-\xff]*[\x00-\x7f])\x15\x00\x15\x06", whole)]
    for place, mask in itertools.product(counts, [1 << bit for bit in range(7)]):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        try:
            found = pq.read_table(path, page_checksum_verification=True).select(table.column_names)
            if found.cast(table.schema) != table:
                return path.read_bytes()
        except Exception:
            continue
        finally:
            changed = path.read_bytes()
            path.write_bytes(whole)
    raise AssertionError(changed)


def test_a_bit_that_parquet_does_not_notice_is_named_before_it_is_trained_on(begun: Path) -> None:
    scores = one(begun, "steps/0003/score-*/scores.parquet")
    times = scores.stat()
    scores.write_bytes(silent_flip(scores))
    os.utime(scores, ns=(times.st_atime_ns, times.st_mtime_ns))
    command = vppo("train", "--run", "small", runs=begun.parent)
    refused(command, scores, "its content changed since it was written", "Delete the folder")
    assert "another machine" not in command.out + command.err
    refused(vppo("report", "small", runs=begun.parent), scores)


@pytest.mark.parametrize(
    ("pattern", "arguments"),
    [
        ("prepare-*/train.parquet", "train --run small"),
        ("steps/0003/rollout-*/rollouts.parquet", "train --run small"),
        ("steps/0003/score-*/looks.parquet", "report small"),
        ("steps/0002/update-*/advantages.parquet", "report small"),
        ("checkpoints/0002/*/model/tokenizer_config.json", "train --run small"),
        ("checkpoints/0002/*/model/config.json", "export out --checkpoint 2"),
        ("checkpoints/0002/*/trainer/optimizer.safetensors", "train --run small"),
        ("checkpoints/0002/*/model/model.safetensors", "eval --checkpoint 2"),
        ("eval/0000/glyphs-*/results.json", "train --run small"),
    ],
)
def test_any_file_with_a_changed_byte_is_named_by_what_would_use_it(begun: Path, pattern: str, arguments: str) -> None:
    file = one(begun, pattern)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused(vppo(*arguments.split(), runs=begun.parent), file, "its content changed")


def test_a_file_that_was_not_committed_is_not_read(run: Path) -> None:
    model = one(run, "checkpoints/0003/*/model")
    (model / "special_tokens_map.json").write_text("{}")  # transformers would take it
    refused(
        vppo("export", "out", runs=run.parent),
        model / "special_tokens_map.json",
        "is not one of the files that were committed there",
    )
    assert not (run.parent.parent / "out").exists()
    looks = one(run, "steps/0002/score-*/looks.parquet")
    with pytest.raises(UserError, match="not one of the files"):
        read_rows(Path(shutil.copy(looks, looks.with_name("more.parquet"))), Rollout)


def test_evaluations_with_an_edited_number_are_not_printed(run: Path) -> None:
    results = one(run, "eval/0003/glyphs-*/results.json")
    replace(results, r"\n( +)0(,?)\n", r"\n\g<1>1\2\n")  # a mark of one question
    refused(vppo("status", runs=run.parent), results, "its content changed")
    with pytest.raises(UserError, match="its content changed"):
        load(str(results.parent))


# -- files that carry a hash themselves ------------------------------------------------------------


@pytest.mark.parametrize("name", ["next_position", "accuracy", "finished", "key", "files"])
def test_a_changed_manifest_is_named(begun: Path, name: str) -> None:
    manifest = one(begun, "steps/0003/rollout-*/manifest.json")
    replace(manifest, rf'("{name}": [^0-9]*)([0-9])', lambda m: m[1] + str((int(m[2]) + 1) % 10))
    with pytest.raises(UserError, match="its text changed since it was written") as caught:
        read_manifest(manifest.parent)
    assert caught.value.place == str(manifest)
    if name == "next_position":
        refused(vppo("train", "--run", "small", runs=begun.parent), manifest)
        refused(vppo("status", runs=begun.parent), manifest)


def test_the_hash_of_an_object_does_not_depend_on_how_it_is_written() -> None:
    content = {"b": 1.5, "a": {"2": [1, None], "10": "é"}, "n": {1: 2, 10: 3}}
    known = sealed(content)
    assert intact(json.loads(json.dumps(known, indent=3)))
    assert intact(json.loads(json.dumps(dict(reversed(known.items())), ensure_ascii=False)))
    assert not intact(known | {"b": 1.25})
    assert not intact(content)
    assert len(sealed(content, 8)[SEAL]) == 8


def test_a_damaged_line_of_a_journal_is_told_and_sampled_again(run: Path, finished: Finished) -> None:
    journal = one(run, "eval/0003/journals/glyphs-*.jsonl")
    whole = journal.read_text().splitlines()
    number = next(i for i, line in enumerate(whole) if re.search(r"boxed\{\d", line))
    replace(journal, r"(boxed\{)(\d)", lambda m: m[1] + str((int(m[2]) + 1) % 10))
    refused(vppo("eval", "--regrade", runs=run.parent), journal, "Delete the folder")
    shutil.rmtree(one(run, "eval/0003/glyphs-*"))
    journal.write_text("".join(line + "\n" for line in whole))  # regrading has left it out
    replace(journal, r"(boxed\{)(\d)", lambda m: m[1] + str((int(m[2]) + 1) % 10))
    command = vppo("train", "--run", "small", runs=run.parent).succeeded()
    told = " ".join((command.out + command.err).split())
    assert f"{journal}, line {number + 1}: changed since it was written" in told
    assert sorted(journal.read_text().splitlines()) == sorted(whole)
    name = str(one(run, "eval/0003/glyphs-*/results.json").relative_to(run))
    assert contents(run)[name] == contents(finished[0])[name]


@pytest.mark.parametrize("place", range(0, 120, 7))
def test_no_flip_of_a_journal_gives_another_answer(tmp_path: Path, place: int) -> None:
    path = tmp_path / "journal.jsonl"
    entries = [Entry("q", i, f"\\boxed{{{i}}}", False, 3, "ab") for i in range(2)]
    append(path, entries)
    whole = path.read_bytes()
    for bit in range(8):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        found = read_journal(path).get("q", [])
        assert found == entries[: len(found)]
        assert len(found) == 2 or damage(path)


def test_a_changed_report_is_not_compared(run: Path, tmp_path: Path) -> None:
    report = run / "eval" / "0003" / "report.json"
    baseline = Path(shutil.copy(report, tmp_path / "baseline.json"))
    assert load(str(baseline))[1] == load(str(run))[1]
    replace(baseline, r'("accuracy": 0\.)\d', r"\g<1>9")
    refused(vppo("compare", baseline, "small", runs=run.parent), baseline, "changed since")
    shutil.copy(baseline, report)
    refused(vppo("report", "small", runs=run.parent), report, "changed since")
    shutil.rmtree(one(run, "eval/0003/glyphs-*"))
    refused(vppo("train", "--run", "small", runs=run.parent), report, f"rm {report}")


# -- config.yaml -----------------------------------------------------------------------------------


def without_mark(text: str) -> str:
    """As earlier versions wrote it."""
    mark, _, rest = text.partition("\n")
    assert mark.startswith(runs.MARK)
    return rest


CONFIGS: list[tuple[str, Callable[[str], str], str]] = [
    ("emptied", lambda t: "", "settings are missing"),
    ("cut", lambda t: t[: t.index("seed:") + 7], "changed or cut short"),
    ("cut at a line", lambda t: t[: t.index("update:")], "changed or cut short"),
    ("a digit", lambda t: t.replace("seed: 0", "seed: 1"), "changed or cut short"),
    ("old, cut at a line", lambda t: without_mark(t)[: without_mark(t).index("update:")], "settings are missing"),
    (
        "old, without its end",
        lambda t: without_mark(t).rpartition("  trackers")[0],
        "1 settings are missing (run.trackers)",
    ),
    ("one line", lambda t: "name: new\n", "settings are missing"),
    ("not text", lambda t: t.replace("seed", "se\udcff"), "config.yaml"),
]


@pytest.mark.parametrize(("how", "change", "expected"), CONFIGS, ids=lambda v: str(v)[:20])
def test_a_config_that_is_not_whole_is_refused(
    run: Path, how: str, change: Callable[[str], str], expected: str
) -> None:
    path = run / runs.CONFIG
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        runs.read_config(run)
    assert str(path) in caught.value.place
    if how == "emptied":
        before = contents(run)
        for arguments in ("train --run small", "status", "eval", "report small", "config --run small"):
            refused(vppo(*arguments.split(), runs=run.parent), path, "vppo train --run small --config")
        assert contents(run) == before


def test_a_whole_config_of_an_earlier_version_or_of_a_person_serves(run: Path) -> None:
    path, config = run / runs.CONFIG, runs.read_config(run)
    path.write_text(without_mark(path.read_text()))
    assert runs.read_config(run) == config
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    assert runs.read_config(run) == config.model_copy(update={"seed": 1})


def test_settings_that_are_given_anew_mend_a_damaged_config(run: Path, finished: Finished) -> None:
    (run / runs.CONFIG).write_text("")
    given_anew = ["--config", "tiny.yaml", *given(*SMALL)]
    vppo("train", "--run", "small", *given_anew, runs=run.parent).succeeded()
    assert runs.read_config(run) == runs.read_config(finished[0])
    assert contents(run) == contents(finished[0])


# -- metrics.jsonl and run.json --------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage_of", [lambda b: b[:-20], lambda b: b"\xff" + b[1:], lambda b: b"", lambda b: b.replace(b"0", b"1")]
)
def test_a_damaged_metrics_file_changes_nothing_and_is_mended(
    begun: Path, finished: Finished, damage_of: Callable[[bytes], bytes]
) -> None:
    path, before = begun / runs.METRICS, look(begun).json()
    whole = path.read_bytes()
    path.write_bytes(damage_of(whole))
    assert look(begun).json() == before
    runs.write_metrics(chain_of(begun))
    assert path.read_bytes() == whole


def test_a_torn_line_of_metrics_stops_no_command(begun: Path, finished: Finished) -> None:
    path = begun / runs.METRICS
    path.write_bytes(path.read_bytes()[:-20])
    vppo("status", runs=begun.parent).succeeded()
    vppo("report", "small", runs=begun.parent).succeeded()
    vppo("train", "--run", "small", runs=begun.parent).succeeded()
    assert contents(begun) == contents(finished[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00\x00",
        '{"state": 1}',
        '{"state": "running", "time": NaN}',
        '{"state": "running", "step": "3"}',
        '{"state": "running", "done": 1e999}',
        "[" * 100_000,
        '{"state": "running", "memory": ' + "9" * 400 + "}",
        '{"state": "running", "pid": -7}',
        '{"state": "running", "time": null}',
        '{"state": ["running"]}',
        '{"state": "running", "pid": 1.5}',
    ],
    ids=range(15),
)
def test_a_run_json_without_sense_is_told(run: Path, text: str) -> None:
    (run / runs.STATE).write_text(text)
    glance = look(run)
    assert glance.state.state == "stopped"  # what the lock says is all that is known
    assert str(run / runs.STATE) in glance.json()["warnings"][0]
    assert any("run.json is damaged" in str(line) for line in lines(glance))


def test_a_changed_run_json_is_told_and_one_of_another_version_is_read(run: Path) -> None:
    path = run / runs.STATE
    found = json.loads(path.read_text())
    assert intact(found, runs.STATE_DIGITS)
    path.write_text(json.dumps(found | {"step": 2}))
    assert look(run).warnings
    old = {name: value for name, value in found.items() if name not in (SEAL, "verified_s")}
    path.write_text(json.dumps(old | {"of_a_later_version": 1}))
    assert not look(run).warnings
    assert look(run).state.step == found["step"]


# -- earlier versions ------------------------------------------------------------------------------


def as_earlier(run: Path) -> None:
    """Take away the hashes that commit 1ab4b85 did not write."""
    path = run / runs.CONFIG
    path.write_text(without_mark(path.read_text()))
    for path in (*run.rglob(MANIFEST), *run.rglob("report.json"), run / runs.STATE):
        content = json.loads(path.read_text())
        del content[SEAL]
        if "format" in content:
            content["format"] = 1
        path.write_text(json.dumps(content, indent=1))
    for path in run.rglob("journals/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != SEAL}) + "\n" for row in rows))


def test_a_run_without_hashes_opens_and_goes_on(begun: Path, finished: Finished) -> None:
    shown = look(begun).json()
    as_earlier(begun)
    assert look(begun).json() | {"checkpoints": 0} == shown | {"checkpoints": 0}
    vppo("train", "--run", "small", runs=begun.parent).succeeded()
    found, expected = contents(begun), contents(finished[0])
    read = [name for name in expected if not re.match("eval/000[02]/journals", name)]
    assert [name for name in read if found[name] != expected[name]] == []  # nor the last journal
    vppo("eval", "--regrade", runs=begun.parent).succeeded()
    vppo("report", "small", runs=begun.parent).succeeded()


# -- numbers that are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "update.learning_rate=.inf",
        "update.learning_rate=.nan",
        "rollout.temperature=.inf",
        "update.weight_decay=1e30",
        "update.adam_betas=[.nan,0.9]",
        "eval.temperature=.inf",
        "update.entropy_penalty=.inf",
        "reward.deadline=.inf",
        "update.learning_rate=1e999",
        "update.learning_rate=1e38",
    ],
)
def test_settings_are_numbers(setting: str) -> None:
    with pytest.raises(UserError) as caught:
        settings.load(None, [setting])
    assert setting.partition("=")[0].rpartition(".")[2] in str(caught.value)


def test_an_update_that_overflows_commits_nothing(run: Path, tmp_path: Path) -> None:
    kept, saved = contents(run), set(run.glob("checkpoints/*/*"))
    del kept[runs.METRICS]  # of the settings asked for now
    (tmp_path / "immense.py").write_text(
        "def score(responses, samples):\n    return [3e38 * (i % 2) for i in range(len(responses))]\n"
    )
    command = vppo(
        "train",
        "--run",
        "small",
        *given("reward.function=immense:score", "update.epochs=5"),
        runs=run.parent,
        cwd=tmp_path,
    )
    refused(command, "update 1: the gradients of 5 optimizer steps in a row", "nan", "look at the rewards")
    assert kept.items() <= contents(run).items()
    assert set(run.glob("checkpoints/*/*")) == saved


def test_weights_that_are_no_numbers_are_never_saved_or_loaded(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    chain = chain_of(run)
    session = Session(chain, Silent(), chain.config)
    policy = session.policy(3)
    with torch.no_grad():
        next(policy.model.parameters()).view(-1)[3] = float("inf")
    step = Step("checkpoint", 3, tmp_path)
    expected = r"checkpoint 3: the weights are not finite \(.*: inf\)"
    with pytest.raises(UserError, match=expected), commit(step) as (out, _):
        make(session.ask(chain.checkpoint(3), chain.config), session, out)
    assert list(tmp_path.glob("checkpoint*")) == []
    session.close()
    model = Path(shutil.copytree(shipped_config("tiny_model"), tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[5]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights are not finite .*nan"):
        load_policy(settings.load(None, [f"model.path={model}"]))


def test_a_checkpoint_of_no_numbers_is_not_gone_on_with(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = one(run, "checkpoints/0003/checkpoint-*")
    for name, problem in (
        ("trainer/optimizer.safetensors", "its state is not finite"),
        ("model/model.safetensors", "weights are not finite"),
    ):
        tensors = load_file(folder / name)
        where = next(n for n, value in tensors.items() if value.dim() > 1)
        tensors[where].view(-1)[0] = float("nan")
        save_file(tensors, folder / name, metadata={"format": "pt"})
        content = json.loads((folder / MANIFEST).read_text())
        del content[SEAL]
        content["files"][name] |= {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size}
        (folder / MANIFEST).write_text(json.dumps(sealed(content)))
        command = vppo("train", "--run", "small", *given("run.steps=4"), runs=run.parent)
        refused(command, problem)


def test_the_first_that_is_no_number_is_found() -> None:
    fine = torch.tensor([1.0, -3e38])
    assert first_not_finite([("a", fine), ("b", torch.tensor([])), ("c", torch.tensor([7]))]) is None
    assert first_not_finite([("a", fine), ("b", torch.tensor([0.0, -torch.inf]))]) == ("b", -torch.inf)
    found = first_not_finite([("n", torch.tensor([1.0, torch.nan, torch.inf]))])
    assert str(found) == "('n', nan)"


@pytest.mark.parametrize("value", [1e39, -1e39, float("inf"), float("nan"), 10**400])
def test_a_reward_that_float32_cannot_hold_is_refused(
    value: float, samples: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "large_reward.py").write_text(
        "VALUE = None\ndef score(responses, samples):\n    return [VALUE] * len(responses)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import large_reward

    monkeypatch.setattr(large_reward, "VALUE", value)
    with make_reward("large_reward:score") as reward, pytest.raises(UserError, match="large_reward:score"):
        reward(["\\boxed{1}"], samples[:1], [False])


@pytest.mark.parametrize(("kind", "column"), [("r", "logp"), ("r", "reward"), ("s", "perception"), ("s", "dependency")])
def test_rows_with_numbers_that_are_none_are_not_written(
    kind: str, column: str, rollouts: list[Rollout], scores: list[Scored], tmp_path: Path
) -> None:
    row = {"r": rollouts, "s": scores}[kind][1]
    values = getattr(row, column)
    inner = values[1] if isinstance(values[1], list) else values
    kept, inner[0] = inner[0], float("nan")
    try:
        with pytest.raises(UserError, match=f"column {column}: holds nan for prompt {row.sample_id}"):
            write_rows(tmp_path / "rows.parquet", type(row), [row])
    finally:
        inner[0] = kept
    assert not (tmp_path / "rows.parquet").exists()


# -- what the system refuses is no damage ----------------------------------------------------------


def small_step(folder: Path) -> Step:
    step = Step("score", 3, folder)
    with commit(step) as (out, _):
        write_rows(out / "scores.parquet", Scored, [])
    return step


def test_too_many_open_files_is_no_reason_to_delete(tmp_path: Path) -> None:
    step = small_step(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd"))
    for read in (step.manifest, step.verify, lambda: read_rows(step.path / "scores.parquet", Scored)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(3, open_now), hard))
        try:
            with pytest.raises(UserError, match=r"[Tt]oo many") as caught:
                read()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert str(step.path) in caught.value.place
        assert "Delete" not in caught.value.fix
    step.verify()


def test_a_disk_that_fails_is_no_reason_to_delete(tmp_path: Path) -> None:
    step = small_step(tmp_path)
    (step.path / MANIFEST).rename(tmp_path / "aside")
    (step.path / MANIFEST).symlink_to("/proc/self/mem")  # reading its start gives EIO
    with pytest.raises(UserError, match="the disk failed") as caught:
        step.manifest()
    assert "Delete" not in caught.value.fix


def test_a_file_that_may_not_be_read_is_no_reason_to_delete(begun: Path) -> None:
    for folder in (begun.parent.parent, *begun.rglob("*"), begun, begun.parent):
        folder.chmod(0o777 if folder.is_dir() else 0o666)
    for pattern in ("steps/0003/score-*/scores.parquet", "steps/0002/rollout-*/manifest.json"):
        file = one(begun, pattern)
        file.chmod(0)
        command = vppo("train", "--run", "small", runs=begun.parent, plain_user=True)
        refused(command, file, "ermission")
        assert "Delete" not in command.err
        file.chmod(0o666)


# -- single bytes ----------------------------------------------------------------------------------


def test_flipped_bytes_are_named_or_harmless(run: Path, finished: Finished, tmp_path: Path) -> None:
    left_locked(run)
    rng, read = random.Random(0), Run(run)
    proof = readers_proof(read, 200, rng)
    assert proof.faults == []
    assert proof.flips.total() == 200
    assert proof.named.total() > 100
    assert runs_proof(finished[0], read, 2, rng, tmp_path / "damaged").faults == []
