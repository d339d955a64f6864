# `make demo` reconstructs a sample study; `make quick` checks in a minute, at every save, `make test` everything.
# Each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Byte code is made when a module is first imported: making all of it here would take longer than the installation. So
# what runs from here may write it, whatever the environment says: without it `import torch` takes three times as long.
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE
REQUIREMENTS := settings.ini setup.py pyproject.toml
CONFIG ?= benchmarks/diffspect-1.json
# Processes that share the tests, each of one thread and about 3 GB: two of one thread beat one of two. 0: none but pytest.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS)
export OMP_NUM_THREADS ?= 2

.PHONY: demo dashboard docs quick test lint notebooks export readme hooks train speed clean
.DEFAULT_GOAL := demo

demo: .venv/.installed
	@$(BIN)/diffspect demo $(ARGS)

# The dashboard as an app; JupyterLab users open nbs/tutorials/dashboard.ipynb instead.
dashboard: .venv/.installed-dev
	@$(BIN)/diffspect dashboard $(ARGS)

# The site, in _docs/html.
docs: .venv/.installed-dev
	@$(BIN)/python docs/build.py

# Lint, types, house rules and the tests that take no more than two seconds each.
quick: lint
	@$(PYTEST) -m "not slow" $(ARGS)

# Every check; the slowest ten are named at the end.
test: lint
	@$(PYTEST) --durations=10 $(ARGS)

# 120 columns and ruff's rules in every notebook, test and script; types in the library.
lint: .venv/.installed-dev
	@$(BIN)/python -m ruff check --quiet .
	@$(BIN)/python -m mypy --no-error-summary

# Run every notebook top to bottom, save its outputs, and make the modules and the README from them.
notebooks: .venv/.installed-dev export
	@$(BIN)/python docs/notebooks.py
	@$(BIN)/nbdev_clean
	@$(BIN)/python docs/readme.py

export: .venv/.installed-dev
	@$(BIN)/nbdev_export

readme: .venv/.installed-dev
	@$(BIN)/python docs/readme.py

# Git hooks and Jupyter settings that keep notebooks clean and merge them cell by cell (nbdev).
hooks: .venv/.installed-dev
	@$(BIN)/nbdev_install_hooks

train: .venv/.installed
	@$(BIN)/diffspect train $(CONFIG) $(ARGS)

speed: .venv/.installed
	@$(BIN)/python benchmarks/speed.py $(ARGS)

clean:
	@rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

.venv/.created:
	@echo "Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.created $(REQUIREMENTS)
	@echo "Installing the library into .venv (a minute or more the first time)"
	@$(PIP) -e .
	@touch $@

.venv/.installed-dev: .venv/.created $(REQUIREMENTS)
	@echo "Installing the library and its development tools into .venv (a minute or more the first time)"
	@$(PIP) -e '.[dev]'
	@touch .venv/.installed $@
