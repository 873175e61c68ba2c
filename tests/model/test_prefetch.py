"""Prompts encoded by worker processes: the same tensors, and nobody is left behind."""

import os
import signal
import time

import psutil
import pytest
import torch

from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.images import Unusable
from pipelines.model.policy import Policy
from pipelines.model.prefetch import Prefetcher
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


def test_a_killed_worker_costs_the_head_start_only(policy, encoder, samples):
    encoder.expect(samples[5:6])
    encoder.encode(samples[5])
    [worker] = encoder._prefetcher._pool._processes.values()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    encoder.expect(samples[6:8])
    expected = PromptEncoder(policy.processor, "Think.").encode(samples[6])
    assert torch.equal(encoder.encode(samples[6])["pixel_values"], expected["pixel_values"])


def test_old_prompts_leave_when_bytes_run_out(policy, samples, monkeypatch):
    made = PromptEncoder(policy.processor, "")
    size = sum(tensor.nbytes for tensor in made.encode(samples[0]).values())
    monkeypatch.setattr("pipelines.model.prompts.CACHED_BYTES", 3 * size)
    for sample in samples:
        last = made.encode(sample)
    held = sum(t.nbytes for encoded in made._cache.values() for t in encoded.values())
    assert made._bytes == held <= 3 * size
    assert made.encode(samples[-1]) is last


def test_workers_end_with_a_process_that_is_killed(samples):
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            made = Prefetcher(vars, 1)  # no processor, with which its worker would import transformers
            made.expect([(b"a", samples[0])])
            made._pending[b"a"].exception()
            os.write(write, str(*made._pool._processes).encode())
            time.sleep(600)
        finally:
            os._exit(1)
    os.close(write)
    worker = int(os.read(read, 100))
    assert psutil.pid_exists(worker)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker)
