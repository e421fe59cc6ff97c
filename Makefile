# The two commands of the README are `make demo` and `make test`; the rest is for people who change the code.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= auto
BENCHMARKS ?= journal chunk_bytes detector_cost detection ingest reads gate overhead pages scrape chaos
.DEFAULT_GOAL := help
.PHONY: help demo test test-backends lint bench lab fuzz fuzz-guided clean

help:
	@echo "make demo [ARGS='--exit --json out.json --data DIR']   train a ranker twice, see one diverge, see the gate stop it"
	@echo "make test [ARGS='-k codec']                            lint, types, import contracts and the whole test suite"
	@echo "make test-backends                                     the agent on JAX, with Orbax, and on PyTorch where it is installed"
	@echo "make lint                                              ruff, mypy, import-linter"
	@echo "make bench                                             every benchmark with its peers"
	@echo "make lab [ARGS='--data DIR --plan']                    the paper's and the report's experiments; writes docs/lab.md"
	@echo "make fuzz                                              five minutes of forged chunks against the decoder"
	@echo "make fuzz-guided                                       the same, guided by coverage (installs atheris)"

$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Lossguard needs Python 3.11 to 3.13, this is %d.%d; name another with: make demo PYTHON=python3.11" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/lossguard demo $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# PyTorch is not installed here: on Linux its usual build brings gigabytes of CUDA. Where one is installed, it is tested.
test-backends: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[jax]" orbax-checkpoint
	$(BIN)/python -m pytest -n 0 tests/keras_backends tests/keras/test_keras_orbax.py $(ARGS)

bench: $(VENV)/.dev
	@for b in $(BENCHMARKS); do echo; echo "== $$b"; $(BIN)/python benchmarks/$$b.py || exit 1; done

lab: $(VENV)/.dev
	$(BIN)/lossguard-lab $(ARGS)

fuzz: $(VENV)/.dev
	$(BIN)/python tests/wire/fuzz_decode.py --seconds 300

fuzz-guided: $(VENV)/.dev
	$(BIN)/pip install --quiet atheris
	mkdir -p build/fuzz
	$(BIN)/python tests/wire/fuzz_guided.py -max_total_time=300 -artifact_prefix=build/ build/fuzz tests/golden/wire_v1 tests/golden/wire_v2

clean:
	rm -rf $(VENV) .lossguard build dist
