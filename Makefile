# Two commands on a bare machine (Python 3.11+ and make): `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test prove lint install bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . hypothesis mypy numpy pexpect pytest pytest-timeout pytest-xdist ruff
	touch $@

demo: $(STAMP)
	$(BIN)/lorry run examples/finetune.py

lint: $(STAMP)
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

prove: $(STAMP)
	$(BIN)/python -m pytest -m prove

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
