"""vLLM as the rollout engine, in this process and as a server: its weights, log-probs and seeds.

As it is on a machine with one GPU: there the server shares it, and gets its weights from a trainer on the
CPU.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from pipelines.config import settings
from pipelines.disk.records import Sample
from pipelines.errors import UserError
from pipelines.model.divergence import token_statistics
from pipelines.model.policy import Policy, Row
from pipelines.model.sampling import Sampling
from pipelines.rollout.engines import ENGINES
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.rollout.vllm.engine import check, logprobs_mode

GPU = torch.cuda.is_available()
NEAR = 5e-3 if GPU else 1e-4
"""Nats: vLLM's attention multiplies float32 as TF32 on a GPU."""
MODEL = Path(settings.__file__).parents[2] / "configs" / "tiny_model"
PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=40, samples=4, seed=0)
GREEDY = dataclasses.replace(PLAIN, temperature=1e-6, samples=1)
NAMES = [(1, position) for position in range(8)]


def ids(groups):
    return [[response.ids for response in group] for group in groups]


def same(found, wanted):
    """Whether these groups of responses are equal; on a GPU rounding may tip one of eight."""
    pairs = [(a, b) for x, y in zip(ids(found), ids(wanted), strict=True) for a, b in zip(x, y, strict=True)]
    different = sum(a != b for a, b in pairs)
    return different <= (len(pairs) // 8 if GPU else 0)


def generate(live, *asked):
    """As the engine's policy asks."""
    return live.engine.view(live.policy).generate(*asked)


def noisy(policy, seed):
    """Other weights, with which the same questions get other answers."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3 * weight.std())
    return policy


def trainers_logp(policy, samples, groups, temperature=1.0):
    """The trainer's log-probs of these responses, flat, and the engine's."""
    rows = [
        Row(policy.encoder.encode(sample), [r.ids for r in group])
        for sample, group in zip(samples, groups, strict=True)
    ]
    flat = [response for group in groups for response in group]
    with torch.no_grad():
        ours = token_statistics(
            policy.hidden_states(rows),
            policy.head_weight,
            torch.tensor([token for r in flat for token in r.ids], device=policy.device),
            temperature=temperature,
            suppressed_ids=policy.suppressed_ids,
        ).logp
    return ours.cpu(), torch.tensor([value for r in flat for value in r.logp])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of the tiny model, started as docs/rollout_vllm.md says."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(MODEL),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--generation-config",
        "vllm",
        "--logprobs-mode",
        "processed_logprobs",
        "--trust-request-mm-kwargs",
        "--enforce-eager",
        "--no-enable-chunked-prefill",
        "--limit-mm-per-prompt",
        '{"video": 0}',
        "--gpu-memory-utilization",
        "0.3",
    ]
    environment = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            assert process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1)
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module", params=["process", "server"])
def started(request, policy, tiny_config) -> Iterator[SimpleNamespace]:
    """An engine of each kind, and its policy."""
    address = request.getfixturevalue("server") if request.param == "server" else None
    rollout = tiny_config.rollout.model_copy(update={"engine": "vllm", "server": address})
    config = tiny_config.model_copy(update={"rollout": rollout})
    model = copy.deepcopy(policy.model)
    own = Policy(model.cpu() if address else model, policy.processor, config)
    engine = ENGINES["vllm"](own)
    yield SimpleNamespace(engine=engine, policy=own, config=config)
    engine.close()


@pytest.fixture
def live(started, policy) -> SimpleNamespace:
    """The same, with the shipped weights in both."""
    started.policy.model.load_state_dict(policy.model.state_dict())
    started.engine.sync(started.policy)
    return started


def test_log_probs_are_the_trainers(live, samples):
    groups = generate(live, samples, NAMES, PLAIN)
    ours, theirs = trainers_logp(live.policy, samples, groups)
    torch.testing.assert_close(theirs, ours, atol=NEAR, rtol=0)
    assert theirs.min() < -1  # not only tokens that are certain


def test_temperature_is_in_the_log_probs(live, samples):
    hot = dataclasses.replace(PLAIN, temperature=1.7)
    groups = generate(live, samples[:4], NAMES[:4], hot)
    ours, theirs = trainers_logp(live.policy, samples[:4], groups, 1.7)
    torch.testing.assert_close(theirs, ours, atol=NEAR, rtol=0)


def test_the_engine_follows_the_weights_after_sync_only(live, samples):
    before = generate(live, samples, NAMES, PLAIN)
    for seed in (1, 2):  # the second sync finds caches of the first
        changed = noisy(live.policy, seed)
        wanted = HuggingFaceEngine(changed).generate(samples, NAMES, GREEDY)
        assert not same(generate(live, samples, NAMES, GREEDY), wanted)
        ours, theirs = trainers_logp(changed, samples, before)
        assert (ours - theirs).abs().mean() > 0.1  # what the guard of the session sees
        live.engine.sleep()
        live.engine.sync(changed)
        assert same(generate(live, samples, NAMES, GREEDY), wanted)  # the same images
        before = generate(live, samples, NAMES, PLAIN)
        ours, theirs = trainers_logp(changed, samples, before)
        torch.testing.assert_close(theirs, ours, atol=NEAR, rtol=0)


def test_responses_depend_on_seed_name_and_number_only(live, samples):
    groups = generate(live, samples[:4], NAMES[:4], PLAIN)
    assert [len(group) for group in groups] == [4] * 4
    assert same(generate(live, samples[3::-1], NAMES[3::-1], PLAIN), groups[::-1])
    later = dataclasses.replace(PLAIN, first=2, samples=2)
    assert same(generate(live, samples[:4], NAMES[:4], later), [group[2:] for group in groups])
    other = dataclasses.replace(PLAIN, seed=1)
    assert not same(generate(live, samples[:4], NAMES[:4], other), groups)
    assert not same(generate(live, samples[:4], NAMES[4:], PLAIN), groups)


def test_suppressed_ids_are_never_sampled(live, samples):
    torch.manual_seed(0)
    with torch.no_grad():  # weights that say anything
        for weight in live.policy.model.parameters():
            weight.add_(torch.randn_like(weight) * weight.std())
    live.engine.sync(live.policy)
    hot = dataclasses.replace(PLAIN, temperature=2.0, samples=32)
    groups = generate(live, samples, NAMES, hot)
    sampled = [token for group in ids(groups) for response in group for token in response]
    assert len(set(sampled)) > 100
    assert not set(sampled) & set(live.policy.suppressed_ids.tolist())
    ours, theirs = trainers_logp(live.policy, samples, groups, 2.0)
    torch.testing.assert_close(theirs, ours, atol=10 * NEAR, rtol=0)


def test_text_and_end(live, samples):
    end = live.policy.eos_ids[0]
    for [response] in generate(live, samples, NAMES, GREEDY):
        assert response.ids.index(end) == len(response.ids) - 1
        assert len(response.logp) == len(response.ids)
        assert not response.truncated
        assert response.text == live.policy.tokenizer.decode(response.ids[:-1])
    cut = generate(live, samples, NAMES, dataclasses.replace(GREEDY, max_new_tokens=5))
    assert all(response.truncated and len(response.ids) == 5 for [response] in cut)
    whole = generate(live, samples, NAMES, GREEDY)
    assert same(cut, [[dataclasses.replace(response, ids=response.ids[:5])] for [response] in whole])


def test_prompts_without_images_and_with_two(live, samples):
    mixed = [
        Sample("text", "What is 3 + 4?", [], "7"),
        dataclasses.replace(
            samples[0], id="two", problem="<image>Or <image>?", images=[samples[0].images[0], samples[1].images[0]]
        ),
    ]
    found = generate(live, mixed, NAMES[:2], GREEDY)
    assert same(found, HuggingFaceEngine(live.policy).generate(mixed, NAMES[:2], GREEDY))


def test_an_evaluation_with_other_pixels_and_instruction_uses_the_same_engine(live, samples):
    small = {"min_pixels": None, "max_pixels": 3136, "instruction": "Answer with one digit.", "system_prompt": ""}
    asked = live.policy.asked(SimpleNamespace(**small))
    small, usual = (p.encoder.encode(samples[0])["input_ids"] for p in (asked, live.policy))
    assert (small == 5).sum() < (usual == 5).sum()  # image tokens
    view = live.engine.view(asked)
    groups = view.generate(samples, NAMES, PLAIN)
    ours, theirs = trainers_logp(asked, samples, groups)
    torch.testing.assert_close(theirs, ours, atol=NEAR, rtol=0)
    assert not same(generate(live, samples, NAMES, PLAIN), groups)


def test_the_engine_keeps_no_policy_alive(live, samples):
    other = Policy(copy.deepcopy(live.policy.model), live.policy.processor, live.config)
    weights = [weakref.ref(weight) for weight in other.model.parameters()]
    live.engine.sync(other)
    live.engine.view(other).generate(samples[:1], NAMES[:1], GREEDY)
    del other
    gc.collect()
    assert weights
    assert not any(weight() is not None for weight in weights)


def test_a_prompt_read_in_other_tokens_is_an_error(live, samples):
    other = copy.copy(live.policy)
    other.encoder = copy.copy(live.policy.encoder)
    other.encoder._cache = {}
    other.encoder.processor = copy.copy(live.policy.processor)
    other.encoder.processor.chat_template = live.policy.processor.chat_template + "!"
    with pytest.raises(UserError, match=r"question .*differ from token"):
        live.engine.view(other).generate(samples[:1], NAMES[:1], GREEDY)


def test_a_prompt_that_is_too_long_is_an_error(live):
    long = Sample("long", "one two " * 1000, [], "7")
    with pytest.raises(UserError, match=r"refuses a request|answers /v1/chat"):
        generate(live, [long], NAMES[:1], GREEDY)
    generate(live, [Sample("text", "What is 3 + 4?", [], "7")], NAMES[:1], GREEDY)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["rollout.tensor_parallel=3"], "does not divide the model's 4 attention heads"),
        (["rollout.max_new_tokens=1024"], "the model has 1024 positions"),
    ],
)
def test_what_it_would_refuse_later_is_told_at_once(configure, settings, problem):
    with pytest.raises(UserError, match=problem):
        check(configure(*settings))


def test_a_model_that_it_does_not_know(configure, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"architectures": ["OurOwn"]}))
    with pytest.raises(UserError, match=r"model.path .*vLLM does not take it: .*OurOwn") as caught:
        check(configure(f"model.path={folder}"))
    assert len(str(caught.value)) < 600


def test_top_p_leaves_the_log_probs_of_the_whole_policy(configure):
    assert logprobs_mode(configure("rollout.top_p=1")) == "processed_logprobs"
    assert logprobs_mode(configure("rollout.top_p=0.99")) == "raw_logprobs"
    assert logprobs_mode(configure("rollout.top_p=0.99", "rollout.temperature=0.7")) == ("processed_logprobs")


def served_by(address, policy, config, path="tiny"):
    rollout = config.rollout.model_copy(update={"engine": "vllm", "server": address})
    model = config.model.model_copy(update={"path": path})
    config = config.model_copy(update={"rollout": rollout, "model": model})
    return ENGINES["vllm"](Policy(policy.model, policy.processor, config))


def test_a_server_that_is_not_there(policy, tiny_config):
    for address in ("http://127.0.0.1:9", "node7"):
        with pytest.raises(UserError, match="cannot be reached"):
            served_by(address, policy, tiny_config)


def test_a_server_of_another_model(server, policy, tiny_config):
    with pytest.raises(UserError, match=r"serves .*tiny_model, not /models/other"):
        served_by(server, policy, tiny_config, "/models/other")


RANK = """
import sys, torch
from pipelines.config import settings
from pipelines.rollout.engines import ENGINES
from pipelines.rollout.hf import HuggingFaceEngine
from pipelines.embedded.glyphs import GlyphsOptions, make_samples
from pipelines.model.load import load_policy
from pipelines.ranks.ranks import ranks
from pipelines.model.sampling import Sampling

config = settings.load(None, ["rollout.engine=vllm", "run.threads=1", *sys.argv[1:]])
policy = load_policy(config)
engine = ENGINES["vllm"](policy)
samples, names = make_samples("test", 7, 0, GlyphsOptions()), [(1, i) for i in range(7)]
greedy = Sampling(1e-6, 1.0, 0, 40, 1, 0)
torch.manual_seed(1)
with torch.no_grad():
    for weight in policy.model.parameters():
        weight.add_(torch.randn_like(weight) * 0.3 * weight.std())
engine.sync(policy)
view = engine.view(policy)
found = ranks().share(
    list(range(7)),
    lambda mine: view.generate([samples[i] for i in mine], [names[i] for i in mine], greedy),
    config.rollout.tensor_parallel,
)
wanted = HuggingFaceEngine(policy).generate(samples, names, greedy)
different = sum(a[0].ids != b[0].ids for a, b in zip(found, wanted, strict=True))
assert different <= torch.cuda.is_available()  # where rounding may tip one
engine.close()
print("rank", ranks().rank, "agrees", flush=True)
"""


@pytest.mark.skipif(GPU and torch.cuda.device_count() < 2, reason="each rank needs a GPU")
@pytest.mark.parametrize("together", [1, 2])
def test_two_ranks_with_an_engine_each_or_one_together(tmp_path, together):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        f"rollout.tensor_parallel={together}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=MODEL.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(line for line in done.stdout.splitlines() if "agrees" in line) == ["rank 0 agrees", "rank 1 agrees"]
