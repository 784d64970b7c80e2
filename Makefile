# Stoker's commands; `make` alone lists them. Needs Python 3.11 to 3.13 with venv, git and make.
#
# WORKERS=4                        how many tests run side by side, 2 unless told (2 GB of memory for each)
# PYTHON=python3.12                the Python that makes the environments
# STOKER_ENGINE_VENV=FOLDER        an engine environment elsewhere, to share one between checkouts
# STOKER_ENGINE=cpu|gpu            what the engine environment is for, where the host is not to decide it
# UPGRADE=1                        make lock: take the newest versions
# FUZZ_SECONDS=300                 make fuzz: how long each seam is fed
# BENCH="--rounds 5"               make bench-gateway: more options; STOKER_BENCH_VENV=FOLDER: where its proxies are

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export STOKER_ENGINE_VENV ?= $(CURDIR)/.venv-engine
DEMO := .demo
WORKERS ?= 2
FUZZ_SECONDS ?= 60
ATHERIS := atheris==3.0.0
SOURCES := shared daemon tui tests configs  # named, since ruff reads .gitignore in a git checkout only

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: ## the environment of the daemon, the CLI, the TUI and the tests (.venv)
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON): install Python 3.11, 3.12 or 3.13, or say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) configs/locks/make_env.py venv $(VENV)

.PHONY: engine
engine: ## the environment of vLLM and torch (.venv-engine), and the demo's model (.demo/model)
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON): install Python 3.11, 3.12 or 3.13, or say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) configs/locks/make_env.py engine "$(STOKER_ENGINE_VENV)"
	@[ -f $(DEMO)/model/config.json ] || "$(STOKER_ENGINE_VENV)/bin/python" configs/demo/fetch_model.py $(DEMO)/model

.PHONY: demo
demo: venv engine ## play the whole loop on a real model, with a daemon of its own
	@$(BIN)/python configs/demo/demo.py --home $(DEMO)/home --engine "$(STOKER_ENGINE_VENV)" --model $(DEMO)/model

.PHONY: demo-stop
demo-stop: ## end the demo's daemon and all that it started
	@[ ! -x $(BIN)/python ] || $(BIN)/python configs/demo/demo.py --home $(DEMO)/home --stop

.PHONY: check
check: venv ## lint, types, import rules, unit tests: what to run before each commit
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/unit -n $(WORKERS)

.PHONY: test
test: check engine fuzz-tools ## check, and the tests with real processes, a built wheel and a real vLLM
	$(BIN)/pytest tests/tui tests/nvml tests/fuzz -n $(WORKERS)
	$(BIN)/pytest tests/system -n $(WORKERS) --dist loadgroup

.PHONY: faults
faults: venv engine ## real processes, killed, stopped, starved and cut off in every way (part of make test)
	$(BIN)/pytest tests/system/faults -n $(WORKERS) --dist loadgroup

.PHONY: fuzz
fuzz: fuzz-tools ## the gateway's state machines by hypothesis, its seams by atheris, for FUZZ_SECONDS each
	STOKER_FUZZ_EXAMPLES=$$(($(FUZZ_SECONDS) * 40)) $(BIN)/pytest tests/fuzz -n $(WORKERS) --timeout 0 -k "not way_through"
	@mkdir -p .hypothesis
	@[ -d .venv-fuzz/atheris ] || { echo "atheris can't be had for this Python: its part is left out" >&2; exit 0; }; \
	for seam in request body answer meter shadow table; do \
		echo "$$seam, $(FUZZ_SECONDS) s"; \
		$(BIN)/python tests/fuzz/fuzz.py $$seam --seconds $(FUZZ_SECONDS) >.hypothesis/$$seam.log 2>&1 \
			|| { tail -50 .hypothesis/$$seam.log >&2; exit 1; }; \
		grep -h "stat::number_of_executed_units" .hypothesis/$$seam.log; \
	done

# In a folder of its own: the daemon's environment has what the locks name, and nothing else.
.PHONY: fuzz-tools
fuzz-tools: venv
	@[ -d .venv-fuzz/atheris ] || $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps \
		--target .venv-fuzz $(ATHERIS) || echo "$(ATHERIS) can't be installed for this Python: tests skip it" >&2

.PHONY: bench
bench: bench-gateway ## the gateway beside other proxies, the daemon beside supervisord
	$(BIN)/python tests/bench/bench_supervision.py

.PHONY: bench-gateway
bench-gateway: venv ## the gateway beside nginx, HAProxy, vllm-router, smg, sglang-router, LiteLLM: those there are
	$(BIN)/python tests/bench/bench_gateway.py --install $(BENCH)

.PHONY: bench-verdicts
bench-verdicts: venv ## how often verdicts are wrong, and how soon they are right, beside three usual ways to judge
	$(BIN)/python tests/bench/bench_verdicts.py

.PHONY: bench-engine
bench-engine: venv engine ## what the gateway costs in front of a real vLLM
	$(BIN)/python tests/bench/bench_engine.py "$(STOKER_ENGINE_VENV)/bin/python"

.PHONY: lock
lock: ## resolve pyproject.toml into configs/locks again
	@[ -x .venv-lock/bin/uv ] || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install -q uv packaging; }
	@PATH="$(CURDIR)/.venv-lock/bin:$$PATH" .venv-lock/bin/python configs/locks/lock.py $(if $(UPGRADE),--upgrade)

.PHONY: clean
clean: demo-stop ## remove what building, testing and the demo left, but not the environments and the model
	rm -rf build dist *.egg-info $(DEMO)/home .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove the environments and the model too
	rm -rf $(VENV) .venv-engine .venv-lock .venv-fuzz .venv-bench $(DEMO)
