# make demo   a real model on real data: fine-tuned, compared with its base, packaged, signed, verified
# make test   the whole test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean schema

demo: $(VENV)/.demo
	$(BIN)/crab run recipes/demo.yaml
	$(BIN)/crab verify runs/demo/package
	@echo
	@echo "report:  runs/demo/report.html"
	@echo "package: runs/demo/package/"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schema: $(VENV)/.dev
	$(BIN)/crab schema > src/hermitcrab/recipe.schema.json

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of extras: a second `make demo` installs nothing.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@
