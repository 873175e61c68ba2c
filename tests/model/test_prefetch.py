"""Prompts encoded by worker processes: the same tensors, and nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.images import Unusable
from pipelines.model.policy import Policy
from pipelines.model.prompts import PromptEncoder
from pipelines.rollout.engine import encoded


@pytest.fixture(scope="module")
def encoder(policy):
    made = PromptEncoder(policy.processor, "Think.", workers=1)
    yield made
    made.close()


def test_workers_make_the_same_tensors(policy, encoder, samples):
    plain = PromptEncoder(policy.processor, "Think.")
    encoder.expect(samples[:4])
    began = dict(encoder._prefetcher._pending)
    assert len(began) == 4
    for sample in samples[:5]:  # the fifth was not expected
        mine, theirs = encoder.encode(sample), plain.encode(sample)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert all(future.done() for future in began.values())
    encoder.expect(samples[:4])  # cached by now
    assert not encoder._prefetcher._pending


def test_a_bad_image_is_told_as_without_workers(policy, encoder):
    bad = Sample("bad", "What?", [b"no image"], "1")
    encoder.expect([bad])
    with pytest.raises(Unusable, match="not an image"):
        encoder.encode(bad)


def test_what_the_processor_refuses(policy, encoder, samples):
    two = Sample("two", "<image><image>?", samples[0].images, "1")  # one image for two places
    encoder.expect([two])
    asking = Policy.__new__(Policy)
    asking.encoder = encoder
    with pytest.raises(UserError, match="question two: the model's processor refuses it"):
        encoded(asking, two)


def test_a_killed_worker_costs_the_head_start_only(policy, samples):
    made = PromptEncoder(policy.processor, "", workers=1)
    made.expect(samples[:1])
    made.encode(samples[0])
    [worker] = made._prefetcher._pool._processes.values()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    made.expect(samples[1:3])
    expected = PromptEncoder(policy.processor, "").encode(samples[1])
    assert torch.equal(made.encode(samples[1])["pixel_values"], expected["pixel_values"])
    made.close()


def test_old_prompts_leave_when_bytes_run_out(policy, samples, monkeypatch):
    made = PromptEncoder(policy.processor, "")
    size = sum(tensor.nbytes for tensor in made.encode(samples[0]).values())
    monkeypatch.setattr("pipelines.model.prompts.CACHED_BYTES", 3 * size)
    for sample in samples:
        made.encode(sample)
    held = sum(t.nbytes for encoded in made._cache.values() for t in encoded.values())
    assert made._bytes == held <= 3 * size
    assert samples[-1].id in {key[0] for key in made._cache}


STARTED = """
import time
from pipelines.config import settings
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.model.prompts import PromptEncoder, load_processor

if __name__ == "__main__":
    made = PromptEncoder(load_processor(settings.load(None)), "", workers=2)
    samples = make_samples("test", 4, 0, GlyphsOptions())
    made.expect(samples)
    made.encode(samples[0])
    print(*made._prefetcher._pool._processes, flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    script = tmp_path / "started.py"
    script.write_text(STARTED)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers
    assert all(psutil.pid_exists(pid) for pid in workers)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in workers)
