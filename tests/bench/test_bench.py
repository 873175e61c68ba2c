"""vppo bench: every part measures what it says, on small work."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from command_line import vppo

from pipelines.bench import bfloat16, passes, run, sides, steps, streamed, vision
from pipelines.bench.measure import ratio
from pipelines.bench.sides import Work, vppo_steps
from pipelines.bench.workload import Lengths, Workload, random_policy
from pipelines.capacity.lookup import find_shape
from pipelines.config.schema import ModelConfig
from pipelines.disk.records import Scored, read_rows
from vppo_cli.app import app

SMALL = Lengths(image=16, text=4, samples=4, response=8, prompts=2)


def quiet(_):
    pass


def test_ratios_are_taken_turn_by_turn():
    # 2/1, 9/3 and 4/1: the median is 3, where medians of each would give 4.
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == 3.0


def test_a_workload_is_as_long_as_it_says(tmp_path):
    work = Workload(SMALL, "tiny", tmp_path)
    prompt = work.policy.encoder.encode(work.samples[0])
    assert int((prompt["input_ids"] == work.policy.model.config.image_token_id).sum()) == 16
    assert [len(ids) for ids in work.rollouts[0].response_ids] == [8] * 4
    plain, shared = (work.passes(work.with_settings(shared_prefix=s)) for s in (False, True))
    assert [len(p.policy.rows(prompt, [[9, 2]] * 4)) for p in (plain, shared)] == [4, 1]
    # Both ways compute the same, so their times can be compared.
    mine, theirs = shared.scoring(), plain.scoring()
    assert mine.kl.max() > 1e-3
    assert (mine.kl - theirs.kl).abs().max() < 1e-5
    # One trainer: two would hold AdamW's moments twice, 60 GB at 3B.
    assert plain.trainer is shared.trainer
    for one in (plain, shared):
        one.update()
        assert one.trainer.policy is one.policy
    assert one.policy.model is plain.policy.model


def test_random_weights_of_fewer_layers(configure):
    shape = find_shape(ModelConfig())
    policy = random_policy(shape, configure("data.max_pixels=3136"), layers=2)
    assert policy.model.config.text_config.num_hidden_layers == 2
    assert policy.model.config.vision_config.fullatt_block_indexes == [1]
    assert policy.processor.image_processor.size["longest_edge"] == 3136
    whole = random_policy(shape, configure(), None).model
    assert sum(p.numel() for p in whole.parameters()) == shape.parameters


def test_the_command_measures_passes(monkeypatch, tmp_path):
    monkeypatch.setattr(passes, "LONG_PROMPT", SMALL)
    out = tmp_path / "bench"
    line = ("bench", "passes", "--repeats", "1", "--threads", "1", "--out", str(out))
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert "old log-probs" in done.output
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "bench.png").stat().st_size > 5000
    found = json.loads((out / "bench.json").read_text())["passes"]
    assert (found["lengths"], found["repeats"]) == (vars(SMALL), 1)
    assert list(found["seconds"]) == ["old_logp", "scoring", "update", "all"]
    assert all(value > 0 for way in found["seconds"].values() for value in way.values())


def test_a_vision_tower_s_ways(monkeypatch, tmp_path):
    monkeypatch.setattr(vision, "GRIDS", ((8, 8), (6, 10)))
    *_, found = vision.compare("tiny", 2, tmp_path, quiet)
    assert [(row["patches"], row["gradients"]) for row in found["rows"]] == [
        (64, False),
        (64, True),
        (60, False),
        (60, True),
    ]
    assert all(len(row["windows"]["loop"]) == len(row["embedding"]["product"]) == 2 for row in found["rows"])


def test_what_is_beside_a_result(monkeypatch, tmp_path):
    monkeypatch.setattr(bfloat16, "PROMPTS", 3)
    monkeypatch.setattr(bfloat16, "MICRO_BATCH", 2)
    monkeypatch.setattr(bfloat16, "MAX_NEW_TOKENS", 8)
    *_, found = bfloat16.compare("tiny", 1, tmp_path, quiet)
    for dtype, most in (("float32", 1e-4), ("bfloat16", 0.1)):
        part = found["types"][dtype]
        assert part["sampling"]["responses"] == 3 * 8
        assert part["scoring"]["logp_mean"] <= part["scoring"]["logp_max"] < most
        assert 1e-3 < part["scoring"]["kl"] < 10
        assert list(part["ratios"]) == ["3 a pass", "the update's passes"]
        assert part["ratios"]["3 a pass"]["furthest"] < most
        # The same groups in the same pass: trained and scored log-probs are the same bits.
        assert part["ratios"]["the update's passes"] == {"mean": 1.0, "furthest": 0.0}
    assert bfloat16._first_difference([1, 2, 3], [1, 2, 4]) == 3
    assert bfloat16._first_difference([1, 2], [1, 2, 4]) == 3


def test_the_streamed_pass_against_whole_logits(monkeypatch, tmp_path):
    def here(line, **_):
        """What its process would print; one of its own is test_memory_does_not_grow_with_the_tokens'."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            streamed.main(*line[3:])
        torch.set_num_threads(1)
        return SimpleNamespace(stdout=printed.getvalue())

    monkeypatch.setattr(streamed, "subprocess", SimpleNamespace(run=here))
    monkeypatch.setattr(streamed, "VOCABULARY", 5_000)
    monkeypatch.setattr(streamed, "NAIVE_TOKENS", 48)
    monkeypatch.setattr(streamed, "TOKENS", 64)
    *_, found = streamed.compare("tiny", 1, tmp_path, quiet)
    gaps = [row["gap"] for row in found["rows"] if "gap" in row]
    assert len(gaps) == 2
    assert max(gaps) < 1e-5
    assert [row["tokens"] for row in found["rows"]] == [48, 48, 64, 48, 48, 64]


def test_what_fails_loses_no_figures(monkeypatch, tmp_path):
    order = []

    def fails(shape, repeats, out, say):
        order.append("passes")
        yield {"seconds": {"old_logp": 1.0}}
        raise MemoryError

    def works(shape, repeats, out, say):
        order.append("streamed")
        yield {"rows": [1]}
        yield {"rows": [1, 2]}

    monkeypatch.setattr(run, "PARTS", {"passes": fails, "streamed": works})
    with pytest.raises(MemoryError):
        run.bench(["passes", "streamed"], "tiny", 1, 1, tmp_path, quiet)
    assert order == ["streamed", "passes"]  # whose processes find the memory free
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found) == ["streamed", "passes, incomplete"]
    assert found["streamed"]["rows"] == [1, 2]
    assert found["passes, incomplete"]["seconds"] == {"old_logp": 1.0}


def test_scoring_is_what_the_sides_differ_in(tmp_path):
    small = Work(prompts=2, samples=4, max_new_tokens=8, micro_prompts=2, steps=1, image_tokens=16, threads=1)
    found, perception = {}, {}
    for name, more in {"with": {}, "without": {"estimator": "entropy"}, "dapo": {"objective": "dapo"}}.items():
        found[name] = next(vppo_steps(replace(small, **more), tmp_path / name))()
        assert list(found[name]["stages"]) == ["rollout", "score", "update"]
        [file] = (tmp_path / name).glob("run/**/scores.parquet")
        perception[name] = read_rows(file, Scored)[0].perception
    assert found["with"]["tokens"] == found["without"]["tokens"] == found["dapo"]["tokens"]  # one policy still
    assert perception["with"] != perception["without"]
    assert not any(perception["dapo"])


class Fork:
    """A side as take_turns starts it, in a fork: it imports nothing again but TRL."""

    def __init__(self, line, stderr, **_):
        (from_us, to_it), (from_it, to_us) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for place, file in enumerate((from_us, to_us, stderr.fileno())):
                os.dup2(file, place)
            sys.stdin, sys.stderr = os.fdopen(0), os.fdopen(2, "w")  # not pytest's
            try:
                sides.main(line[3:])
            finally:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        os.close(from_us)
        os.close(to_us)
        self.stdin, self.stdout = os.fdopen(to_it, "w"), os.fdopen(from_it)

    def kill(self):
        with self.stdin, self.stdout:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        os.waitpid(self.pid, 0)


@pytest.mark.nightly
def test_a_step_against_trl(monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setattr(steps, "subprocess", SimpleNamespace(Popen=Fork, PIPE=subprocess.PIPE))
    small = Work(prompts=2, samples=4, max_new_tokens=16, micro_prompts=1, steps=3, threads=1)
    found = steps.take_turns({"vppo": small, "trl": small}, 1, quiet, "trl")
    for side in ("vppo", "trl"):
        [row] = found[side]
        assert row["seconds"] > 0
        assert 8 <= row["tokens"] <= 2 * 4 * 16  # what it sampled
        assert row["peak"] > 10**8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["pases"], "bench pases: no such part.\n       Did you mean passes?"),
        (["passes", "--shape", "3b"], "needs a GPU"),
        (["trl", "--shape", "3b"], "is measured with the tiny model, not 3b"),
        (["passes", "--shape", "4b"], "no such shape.\n       Known: tiny 3b 7b."),
    ],
)
def test_what_cannot_be_measured(tmp_path, line, message):
    done = vppo("bench", *line, runs=tmp_path / "runs")
    assert done.code == 2
    assert message in done.err


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_tokens():
    # Whole logits of one view of 512 tokens would have 0.29 GiB.
    line = [sys.executable, "-m", "pipelines.bench.streamed", "streamed", "512", "1"]
    found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    assert found["logits_bytes"] == 4 * 512 * 152_064 > 2**28
    assert found["extra_bytes"] < 2**27
