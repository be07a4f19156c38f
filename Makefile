PYTHON ?= .venv/bin/python

.PHONY: dev lint format test models classifiers

dev:
	python3 -m venv .venv
	.venv/bin/pip install -c constraints-cpu.txt -e '.[dev]'

lint:
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(dir $(PYTHON))lint-imports
	$(dir $(PYTHON))zizmor --offline --quiet --persona auditor .github/workflows action.yml docs/ci/github.yml

format:
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

test:
	$(PYTHON) -m pytest

# Rebuilds the classifiers, the demo models, the demo corpus and the study's tables: about an hour on two cores.
models:
	$(PYTHON) -m study.heavy study/recipes/heavy.toml --jobs 2 --models models --markdown models/STUDY.md
	$(MAKE) classifiers

# Refits, judges and ships classifiers from the cells of the natural study: some minutes on one core.
classifiers:
	$(PYTHON) -m study.report --cells study/cells --markdown study/RESULTS.md --models models
