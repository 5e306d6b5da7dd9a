# Plain `make` lists what there is to do. Every target makes the environment first if it must.

PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= pocket
RUN     ?=
SET     ?=
ARGS    ?=
TORCH   ?=

# Waiting threads sleep: on a machine shared with others, spinning ones slow a run down tenfold.
export OMP_WAIT_POLICY ?= passive
# Large buffers are kept and used again: fetching them from the system each time doubles a step of a
# tuned decoder (20 s instead of 38) and adds 20 % to a frozen one's (glibc; ignored elsewhere).
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000

# Compiled modules are kept, whatever the shell says: every notebook starts twice as fast.
unexport PYTHONDONTWRITEBYTECODE

PY    := "$(VENV)/bin/python"
READY := $(VENV)/.ready

FORCE:

.DEFAULT_GOAL := help
.PHONY: help env reproduce run smoke test lint notebooks lab bench lock clean FORCE

help: ## show this list
	@echo 'usage: make TARGET [PROFILE=pocket] [RUN=ID] [SET="shots=4 ..."] [ARGS="..."] [PYTHON=python3] [TORCH=cuda]'
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1	\2/p' Makefile | expand -t 14

env: $(READY) ## make the environment in .venv (TORCH=cuda: the CUDA build, or any pip requirement)
	@echo 'the environment in $(VENV) is ready'

reproduce: $(READY) ## run a profile and draw its figures (PROFILE=smoke|pocket|full|paper, SET="name=value ...")
	$(PY) -m xlcore.runs table $(PROFILE) $(SET)
	$(PY) -m snakemake --snakefile workflow/Snakefile --workflow-profile workflow/profiles/local \
	    --config profile=$(PROFILE) $(if $(SET),"overrides=$(SET)") $(ARGS)
	$(PY) -m xlcore.runs summary $(PROFILE) $(SET)

run: $(READY) ## make runs of a profile again, and only those (RUN="ID ...", SET="name=value ...")
	$(PY) -m xlcore.runs execute $(PROFILE) $(SET) --run $(RUN)

smoke: override PROFILE := smoke
smoke: reproduce ## the same chain with tiny models, in a few minutes

test: $(READY) ## run the tests (ARGS is handed to pytest)
	$(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope $(ARGS)

lint: $(READY) ## check the style
	$(PY) -m ruff check $(ARGS) .

notebooks: $(READY) ## run the notebooks again and write their paired .ipynb
	$(PY) tools/notebooks.py $(ARGS)

lab: $(READY) ## open JupyterLab on the notebooks
	$(PY) -m jupyterlab notebooks $(ARGS)

bench: $(READY) ## measure the fast paths beside the slow ones
	$(PY) -m benchmarks $(ARGS)

lock: ## resolve requirements.lock anew from pyproject.toml (ARGS=--upgrade: newest versions)
	$(PYTHON) tools/lock.py $(ARGS)

clean: ## remove .venv and caches, never results, figures or data
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .snakemake build dist
	find . -path ./.git -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune \
	    -exec rm -rf {} +

# The stamp holds the checkout's path: an environment does not survive being moved.
ifneq ($(shell cat "$(READY)" 2>/dev/null),$(CURDIR))
$(READY): FORCE
endif
ifneq ($(TORCH),)
$(READY): FORCE
endif

$(READY): requirements.lock pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || \
	    { echo 'make env: no $(PYTHON) here; install Python 3.11 to 3.13, or name one: make env PYTHON=...'; exit 1; }
	@rm -f "$@"
	@"$(PYTHON)" tools/install.py "$(VENV)" --torch "$(TORCH)"
	@printf '%s\n' "$(CURDIR)" > "$@"
