# Everything is set up by these targets: a .venv by pip with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test slow test-cluster check lint types clean

venv: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# beside the environment, not in it: it is built for a torch with CUDA, and only the tests of VLMs make do with it
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/torchvision torchvision
	touch $@

demo: venv
	$(BIN)/sarm-ray demo

test: venv
	$(BIN)/python -m pytest

slow: venv   # the whole demo on five seeds, and what is too long for `make test`: an hour and more
	$(BIN)/python -m pytest -m slow

test-cluster: venv   # hosts in network namespaces: needs root and iproute2; an hour
	$(BIN)/python -m pytest -m cluster

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
