# `make demo` and `make test` work on a fresh machine: they make .venv and install the pinned versions first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest
CODE := hf_proxadam scripts tests

.PHONY: demo test test-oldest test-slow quality style install clean

install: $(INSTALLED)

# The stamp is written last, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# The main job: a comparison of four optimizers on scikit-learn's digits, ending in a result card.
demo: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/hf-proxadam compare scripts/studies/digits.yaml --output_dir runs/digits

test: quality
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The same tests with the oldest transformers that is supported, in an environment of its own.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints-oldest.txt --editable '.[dev]'
	touch $@

# What takes minutes (real trainings, kill -9 in a loop); CI runs it too.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow --durations 10

quality: $(INSTALLED)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

style: $(INSTALLED)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) $(OLDEST) runs dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
