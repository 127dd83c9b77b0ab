# make demo | make test | make test-comfyui | make test-browser | make lint | make clean. Variables can be given on the command line:
#   make demo IMAGES=photos/robot WORD=robot
#   make test-comfyui COMFYUI_PATH=/opt/ComfyUI
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
# Pinned here only: ComfyUI and every other home of the package bring their own.
TORCH := torch==2.13.0
ART := node_modules/@iconify-json/fluent-emoji-flat/icons.json
OUT := out/demo
IMAGES :=
WORD :=
PYTEST :=
COMFYUI_PATH ?= $(HOME)/ComfyUI
COMFYUI_PYTHON = $(firstword $(wildcard $(COMFYUI_PATH)/venv/bin/python $(COMFYUI_PATH)/.venv/bin/python) python3)
# With a ComfyUI its Python runs the benchmarks, so that both hosts are measured (needs diffusers and peft there).
FULL_PYTHON = $(if $(wildcard $(COMFYUI_PATH)/main.py),"$(COMFYUI_PYTHON)",$(PYTHON))
EDIT :=
SPEED :=
QUALITY :=
SEE :=
COMPOSE :=
DISTIL :=

.PHONY: bench-compose bench-distil bench-edit bench-mixer bench-quality bench-see bench-speed screenshots test-browser test-fullsize help demo test test-comfyui lint clean

help:
	@sed -n '1,3s/^# *//p' Makefile

demo: $(VENV)/demo
	$(PYTHON) -m sparse_core demo make --out "$(OUT)" $(if $(IMAGES),--images "$(IMAGES)") $(if $(WORD),--word "$(WORD)")

test: $(VENV)/test
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(ART); fi
	$(PYTHON) -m pytest tests --ignore tests/comfyui --ignore tests/browser --ignore tests/fullsize $(PYTEST)
	@echo
	@echo "=== tests/comfyui did NOT run here: it needs a real ComfyUI. Run it with: make test-comfyui ==="

test-comfyui:
	@test -f "$(COMFYUI_PATH)/main.py" || { echo "There is no ComfyUI in $(COMFYUI_PATH). Give its folder: make test-comfyui COMFYUI_PATH=..." >&2; exit 1; }
	@"$(COMFYUI_PYTHON)" -c "import lark, matplotlib, pytest, pytest_timeout, hypothesis" 2>/dev/null \
		|| "$(COMFYUI_PYTHON)" -m pip install -q -r requirements.txt pytest pytest-timeout hypothesis
	COMFYUI_PATH="$(COMFYUI_PATH)" "$(COMFYUI_PYTHON)" -m pytest tests/comfyui $(PYTEST)

# The panels in ComfyUI's own front end. Runs in this project's environment, beside the ComfyUI that it starts.
test-browser: $(VENV)/test
	@test -f "$(COMFYUI_PATH)/main.py" || { echo "There is no ComfyUI in $(COMFYUI_PATH). Give its folder: make test-browser COMFYUI_PATH=..." >&2; exit 1; }
	@$(PYTHON) -c "import playwright" 2>/dev/null || $(PYTHON) -m pip install -q --disable-pip-version-check playwright
	COMFYUI_PATH="$(COMFYUI_PATH)" $(PYTHON) -m pytest tests/browser $(PYTEST)

# The documents' pictures of the panels and of a report, drawn anew.
screenshots: $(VENV)/test
	@$(PYTHON) -c "import playwright" 2>/dev/null || $(PYTHON) -m pip install -q --disable-pip-version-check playwright
	COMFYUI_PATH="$(COMFYUI_PATH)" $(PYTHON) tests/browser/screenshots.py

# Those, the icon, and the workflows' pictures: half an hour on two cores.
.PHONY: pictures
pictures: screenshots
	$(PYTHON) -m workflows.icon
	COMFYUI_PATH="$(COMFYUI_PATH)" $(PYTHON) -m workflows.pictures

bench-mixer: $(VENV)/test
	@$(PYTHON) -c "import playwright" 2>/dev/null || $(PYTHON) -m pip install -q --disable-pip-version-check playwright
	COMFYUI_PATH="$(COMFYUI_PATH)" $(PYTHON) -m benchmarks.mixer_latency

# All benchmarks: reports of whole runs go to benchmarks/results, those of a part of the work to out/.

# Hours; goes on where it was stopped. Options: make bench-edit EDIT="--quick"
bench-edit: $(VENV)/test
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(ART); fi
	$(PYTHON) -m benchmarks.editing $(EDIT)

# Hours and gigabytes: not part of make test. Options: make bench-speed SPEED="--quick"
bench-speed: $(if $(wildcard $(COMFYUI_PATH)/main.py),,$(VENV)/test)
	COMFYUI_PATH="$(COMFYUI_PATH)" $(FULL_PYTHON) -m benchmarks.speed $(SPEED)

# Hours; goes on where it was stopped. Options: make bench-quality QUALITY="--quick"
bench-quality: $(VENV)/test
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(ART); fi
	@$(PYTHON) -c "import matplotlib" 2>/dev/null || $(PYTHON) -m pip install -q --disable-pip-version-check matplotlib
	$(PYTHON) -m benchmarks.quality $(QUALITY)

# Hours; goes on where it was stopped, and takes bench-quality's trainings. Options: make bench-see SEE="--quick"
bench-see: $(VENV)/test
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(ART); fi
	$(PYTHON) -m benchmarks.see $(SEE)

# Hours; goes on where it was stopped. Options: make bench-compose COMPOSE="--quick"
bench-compose: $(VENV)/test
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(ART); fi
	$(PYTHON) -m benchmarks.compose $(COMPOSE)

# Half an hour; goes on where it was stopped. Options: make bench-distil DISTIL="--only robot"
bench-distil: $(VENV)/test
	$(PYTHON) -m benchmarks.distil $(DISTIL)

test-fullsize:
	@test -f "$(COMFYUI_PATH)/main.py" || { echo "There is no ComfyUI in $(COMFYUI_PATH). Give its folder: make test-fullsize COMFYUI_PATH=..." >&2; exit 1; }
	@"$(COMFYUI_PYTHON)" -c "import lark, matplotlib, pytest, pytest_timeout, hypothesis, diffusers" 2>/dev/null \
		|| "$(COMFYUI_PYTHON)" -m pip install -q -r requirements.txt pytest pytest-timeout hypothesis diffusers accelerate
	COMFYUI_PATH="$(COMFYUI_PATH)" "$(COMFYUI_PYTHON)" -m pytest tests/fullsize $(PYTEST)

lint: $(VENV)/test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

clean:
	rm -rf $(VENV) out build node_modules *.egg-info .pytest_cache .ruff_cache .hypothesis

# The first Python on the path that works and is new enough, and not too new for the pinned torch.
$(PYTHON):
	@for python in python3.12 python3.13 python3.11 python3.10 python3 python; do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
		then exec "$$python" -m venv --clear $(VENV); fi; \
	done; \
	echo "This needs Python 3.10 to 3.13 with its venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1

$(VENV)/demo $(VENV)/test: $(VENV)/%: pyproject.toml | $(PYTHON)
	@echo "Installing into $(VENV); the first time this takes a few minutes."
	$(PYTHON) -m pip install -q --disable-pip-version-check "$(TORCH)" -e ".[$*]"
	@touch $@

# The artwork that the demo model learnt from; tests that look at it are skipped without npm.
$(ART):
	npm install --silent --no-save --no-package-lock --no-audit --no-fund @iconify-json/fluent-emoji-flat@1
