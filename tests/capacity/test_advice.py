"""The plan's advice: whenever some combination of the settings it knows fits, it names one that does."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from command_line import given as setting_flags
from command_line import vppo
from hypothesis import event, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from pipelines.capacity import table as plan_table
from pipelines.capacity.fitting import advice, larger, problems
from pipelines.capacity.gpus import GPUS
from pipelines.capacity.lookup import KNOWN
from pipelines.capacity.shapes import Shape, Vision
from pipelines.capacity.work import Run
from pipelines.config import settings

CARDS = ("RTX4090", "A100-40", "H100", "H200")  # 24, 40, 80, 141 GB
QUIET = {
    "zero_stage": (1, 2, 3),
    "offload": (False, True),
    "tensor_parallel": (1, 2, 4, 8),
    "shared_prefix": (True, False),
    "memory_fraction": (0.1, 0.3, 0.5, 0.7, 0.9),
}
SHAPES = [*KNOWN.values(), Shape(48, 6144, 48, 8, 128, 16384, 100_000, False, Vision(24, 1024, 4096, 6144))]


def combined(run: Run, **changes: object) -> Run:
    """The run with every batch at its least, and other settings."""
    config, dtype = run.config, changes.get("dtype", run.config.model.dtype)
    update = {"gradient_checkpointing": True, "micro_batch_tokens": 1}
    update |= {k: changes[k] for k in ("zero_stage", "offload", "lora_rank") if k in changes}
    update["engine"] = changes.get("trainer", config.update.engine)
    rollout = {"batch_prompts": 1, "engine": changes.get("sampler", config.rollout.engine)}
    rollout |= {k: changes[k] for k in ("tensor_parallel", "memory_fraction") if k in changes}
    model = {"dtype": dtype, "shared_prefix": changes["shared_prefix"]}
    return Run(
        config.model_copy(
            update={
                "update": config.update.model_copy(update=update),
                "rollout": config.rollout.model_copy(update=rollout),
                "score": config.score.model_copy(update={"batch_prompts": 1}),
                "model": config.model.model_copy(update=model),
            }
        ),
        run.shape,
        run.gpu,
        run.count,
    )


def some_fits(run: Run, **deciding: tuple) -> bool:
    """Brute force: whether any combination fits, of ``deciding`` too (setting -> values)."""
    for values in product(*deciding.values()):
        changes = dict(zip(deciding, values, strict=True))
        trainer = changes.get("trainer", run.config.update.engine)
        sampler = changes.get("sampler", run.config.rollout.engine)
        zero = trainer == "deepspeed"
        own = sampler == "vllm"
        quiet = {
            "zero_stage": QUIET["zero_stage"] if zero else (1,),
            "offload": QUIET["offload"] if zero else (False,),
            "tensor_parallel": [
                n for n in QUIET["tensor_parallel"] if run.count % n == 0 and run.shape.heads % n == 0 and zero
            ]
            if own and zero
            else (1,),
            "memory_fraction": QUIET["memory_fraction"] if own else (0.4,),
            "shared_prefix": QUIET["shared_prefix"],
        }
        for rest in product(*quiet.values()):
            if not problems(combined(run, **changes, **dict(zip(quiet, rest, strict=True)))):
                return True
    return False


@st.composite
def runs(draw: st.DrawFn) -> Run:
    def of(*values):
        return draw(st.sampled_from(values))

    text = {
        "update.engine": of("torch", "deepspeed"),
        "rollout.engine": of("hf", "vllm"),
        "model.dtype": of("float32", "bfloat16"),
        "update.lora_rank": of(0, 0, 64, 256),
        "update.zero_stage": of(1, 2, 3),
        "update.offload": of("true", "false"),
        "update.gradient_checkpointing": of("true", "false"),
        "model.shared_prefix": of("auto", "false"),
        "update.freeze_vision": of("true", "false"),
        "update.kl_coefficient": of(0, 0, 0.1),
        "update.micro_batch_prompts": of(1, 6, 16),
        "score.batch_prompts": of(1, 16, 100),
        "rollout.batch_prompts": of(1, 64, 512),
        "rollout.memory_fraction": of(0.03, 0.4, 0.93),
        "update.micro_batch_tokens": of("null", 20480),
        "rollout.samples_per_prompt": of(2, 8, 32),
        "rollout.max_new_tokens": of(512, 2048, 16384),
        "data.max_prompt_tokens": of(512, 4096, 16384),
        "update.shaping_statistics": of("batch", "micro_batch"),
        "model.path": "Qwen/any",
        "published.micro_batch_responses": of(16),
    }
    config = settings.load(None, [f"{key}={value}" for key, value in text.items()])
    return Run(config, of(*SHAPES), GPUS[of(*CARDS)], draw(st.integers(1, 8)))


def taken(run: Run, lines: list[str], folder: Path, gpu: str | None = None) -> Run:
    """The run with ``--set`` lines, read as the command line reads them."""
    file = folder / "config.yaml"
    file.write_text(settings.dump(run.config))
    return Run(settings.load(file, lines), run.shape, GPUS[gpu or run.gpu.name], run.count)


@hypothesis(max_examples=20, deadline=None, derandomize=True)
@given(runs())
def test_whenever_some_combination_fits_the_advice_fits(tmp_path_factory, run):
    folder, found = tmp_path_factory.getbasetemp(), advice(run)
    event(
        "nothing fits"
        if found is None
        else "results change"
        if found.deciding
        else "quiet settings"
        if found.settings
        else "fits"
    )
    if found is None:
        ranks = (run.config.update.lora_rank, 8)
        assert not some_fits(
            run, dtype=("float32", "bfloat16"), trainer=("torch", "deepspeed"), sampler=("hf", "vllm"), lora_rank=ranks
        )
        return
    after = taken(run, found.lines, folder)
    assert problems(after) == []
    objective = {k: v for k, v in run.config.keyed("").items() if k not in found.deciding}
    assert objective.items() <= after.config.keyed("").items(), "what decides results is told"
    if found.deciding:
        assert not some_fits(run), "the rest would have been enough"
    for left in found.settings:  # none can be spared
        rest = [line for line in found.lines if not line.startswith(f"{left}=")]
        assert problems(taken(run, rest, folder)), left


def test_a_larger_gpu_is_advised_only_where_no_setting_helps(tmp_path):
    config = settings.load(Path("qwen2_5_vl_32b.yaml"))
    run = Run(config, KNOWN["Qwen/Qwen2.5-VL-32B-Instruct"], GPUS["RTX4090"], 1)
    assert advice(run) is None
    gpus = dict(larger(run))
    assert [gpu.memory for gpu in gpus] == sorted(gpu.memory for gpu in gpus)
    for gpu, found in gpus.items():
        assert problems(taken(run, found.lines, tmp_path, gpu.name)) == []


def test_a_config_that_names_no_sizes_can_be_made_to_fit(tmp_path):
    """Said to need a smaller model before; by the command, whose advice is taken as it is printed."""
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"question": "What?", "images": [], "answer": "1"}\n')
    own = (f"data.source={rows}", "data.columns={problem: question}", "model.path=Qwen/Qwen2.5-VL-3B-Instruct")
    file = tmp_path / "my.yaml"
    file.write_text(settings.dump(config := settings.load(None, own, base={})))

    before = Run(config, KNOWN["Qwen/Qwen2.5-VL-3B-Instruct"], GPUS["H100"], 8)
    assert problems(before)
    found = advice(before)
    assert found is not None
    assert found.deciding == []
    command = vppo("plan", "--config", str(file), "--json", *setting_flags(*found.lines), runs=tmp_path).succeeded()
    assert command.json["capacity"]["fits"]


def test_what_decides_as_published_is_left_alone():
    config = settings.load(
        Path("qwen2_5_vl_7b.yaml"),
        ["mode=published", "update.micro_batch_tokens=null", "update.micro_batch_prompts=16"],
    )
    run = Run(config, KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"], GPUS["H100"], 8)
    found = advice(run)
    assert problems(run)
    assert found is not None
    assert "update.micro_batch_prompts" in found.settings
    assert found.deciding == []
    assert not any(name.startswith("published.") for name in found.settings)


def test_an_engine_of_ones_own_stays(tmp_path):
    own = ["rollout.engine=mine:Engine", "update.engine=mine:Trainer", "data.max_prompt_tokens=4096"]
    run = Run(settings.load(None, own), KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"], GPUS["H100"], 8)
    found = advice(run)
    assert found is None or not {"rollout.engine", "update.engine", "update.offload"} & set(found.settings)


def test_the_table_in_docs_is_the_commands():
    page = Path(__file__).parents[2] / "docs" / "plan.md"
    assert page.read_text(encoding="utf-8") == plan_table.table(), "make plan-table"
