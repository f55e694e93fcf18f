# Every target makes what it needs: a virtual environment in .venv, with the exact versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUANTIZE := build/quantize
RUN ?= runs/flux-nano-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help train test check prove bench compare nano clean

help: ## Say what there is to make.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1|/' | while IFS='|' read -r name text; do \
		printf '  make %-8s %s\n' "$$name" "$$text"; done

train: $(VENV)/run.stamp ## Post-train the bundled flux-nano with MixGRPO on two rewards, on the CPU, in minutes.
	$(BIN)/mixgrpo train flux-nano --output $(RUN)

test: $(VENV)/dev.stamp ## Run the tests.
	$(BIN)/python -m pytest

check: $(VENV)/dev.stamp ## Format, lint, layers, types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

prove: $(VENV)/dev.stamp $(QUANTIZE)/stamp ## Run the proofs that take minutes, and those that need torchao and bitsandbytes.
	$(BIN)/python -m pytest -m slow -s
	PYTHONPATH=$(QUANTIZE) $(BIN)/python -c 'import torchao, bitsandbytes'
	PYTHONPATH=$(QUANTIZE) $(BIN)/python -m pytest tests/models/test_memory.py tests/models/test_clips.py -k 'int8 or nf4'

bench: $(VENV)/dev.stamp ## Time all methods against each other and predict it, half an hour. Nothing else should run.
	$(BIN)/python benchmarks/methods.py --methods all

METHODS := dancegrpo dancegrpo-random dancegrpo-frozen mixgrpo mixgrpo-cps mixgrpo-flash mixgrpo-flash-star \
	mixgrpo-frozen flow-grpo flow-grpo-fast neighbor-grpo nft

compare: $(VENV)/dev.stamp ## Compare the paper's methods and others on flux-nano, three seeds: hours; stop and go on at will.
	$(BIN)/mixgrpo compare flux-nano --methods $(METHODS) --seeds 3 --judges tesseract \
		--iterations 30 --eval.every 5 --model.threads 1 --output runs/compare-flux-nano

nano: $(VENV)/dev.stamp ## Pretrain flux-nano from scratch into runs/nano, about an hour and a half.
	$(BIN)/python -m mixgrpo.nano all --output runs/nano

clean: ## Remove the environment and what tools leave behind; runs stay.
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Beside the environment, not in it: torchao warns at the start of every command.
$(QUANTIZE)/stamp: $(VENV)/venv.stamp constraints.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target $(QUANTIZE) torchao bitsandbytes
	@touch $@

$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit("mixgrpo needs Python 3.11 or newer, " + sys.executable + " is " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "==> Making a virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run.stamp: $(VENV)/venv.stamp pyproject.toml constraints.txt Makefile
	@echo "==> Installing mixgrpo and what it needs (torch, diffusers, transformers, an OCR model, ...); a minute or two"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ocr,clip]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/venv.stamp pyproject.toml constraints.txt
	@echo "==> Installing mixgrpo with its development tools; a minute or two"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/run.stamp
