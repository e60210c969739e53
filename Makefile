# Every target does its own set-up in .venv; none needs root, a GPU or an account.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NAME ?= demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: install demo test test-slow check format clean

install: $(VENV)/.ready

demo: $(VENV)/.ready
	@.ci/demo $(BIN) $(NAME)

# The engines' contracts have groups of processes of their own, and tests that start Ray a cluster:
# neither shares the machine with another test. The slowest are named, so that the suite stays short.
PYTEST := $(BIN)/python -m pytest --durations=15 --durations-min=5
test: $(VENV)/.ready
	$(PYTEST) -m "not slow and not ray" -n 2 --ignore=tests/contracts
	$(PYTEST) -m "not slow" tests/contracts
	$(PYTEST) -m "not slow and ray"

# What they said is kept, also of those that fail.
REPORT := $(VENV)/test-slow
test-slow: $(VENV)/.ready
	@rm -f $(REPORT).xml
	$(BIN)/python -m pytest -m slow --junitxml=$(REPORT).xml; code=$$?; \
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.slow_tests $(REPORT).xml > $(REPORT).json \
	&& mv $(REPORT).json benchmarks/results/test_slow.json; exit $$code

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@.ci/typecheck $(BIN)

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# DeepSpeed's build looks for the torch that it will run with, so torch comes first and builds
# are not isolated. An editable install warns, in twenty lines, of folders that may hide it: said
# only when it fails.
PIP := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "making the environment in $(VENV) (two minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) pip setuptools wheel ninja
	@$(PIP) torch
	@$(PIP) --no-build-isolation -e '.[dev]' 2>/dev/null || $(PIP) --no-build-isolation -e '.[dev]'
	@$(PIP) --no-deps --target $(VENV)/reference --upgrade torchvision timm \
		transformers tokenizers huggingface_hub regex
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
