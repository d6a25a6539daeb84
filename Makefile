# Every verb sets up what it needs, so `make demo` and `make test` work in a fresh clone with nothing before them.
#
#   PYTHON=...        the interpreter to build .venv with (3.11 or newer; by default the first that fits)
#   ARGS=...          more arguments for the command behind a verb: make test ARGS='tests/unit -k tree'
#   WORKERS=N         test processes of `make test` (by default one a processor, four at most; 0 runs all in one)
#   TORCH_INDEX=URL   one more package index for torch, such as one with CPU-only builds

ROOT := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
VERBS := help setup demo demo-fleet test broker browser test-wheel lint format proto bench clean
.PHONY: $(VERBS)
.DEFAULT_GOAL := help

ifneq ($(ROOT),.)
# Called as `make -f PATH/Makefile`: go there first, so that all paths below are relative.
$(VERBS):
	@$(MAKE) --no-print-directory -C "$(ROOT)" $@
else

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

BIN := .venv/bin
READY := .venv/.ready
EXTRAS := cloud,edge,fleet,train,dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

help: ## list these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make .venv with everything that the other verbs need

demo: $(READY) ## answer smart-home requests with a cloud and an edge on this machine, against plain streaming
	@$(BIN)/outrider demo $(ARGS)

demo-fleet: $(READY) broker ## run a fleet on this machine: a good draft goes out in stages, a bad one is stopped and taken back
	@$(BIN)/outrider fleet demo $(ARGS)

test: $(READY) broker browser ## run the whole test suite
	@$(BIN)/python -m pytest -n $(or $(WORKERS),auto) --maxprocesses 4 --dist loadfile $(ARGS)

test-wheel: $(READY) ## build the wheel and run the unit tests against it instead of the tree
	@rm -rf build/wheel && mkdir -p build/wheel
	@$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	@$(BIN)/python -m venv --without-pip build/wheel/venv
	@$(BIN)/python -m pip --disable-pip-version-check --python build/wheel/venv/bin/python install --quiet --no-deps build/wheel/*.whl
	@# The libraries come from .venv; its editable install does not, since .pth files are not read through this one.
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(build/wheel/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"
	@build/wheel/venv/bin/python -P -c 'import outrider_cloud, outrider_edge, outrider_shared as s; \
	  assert "build/wheel/venv" in s.__file__, s.__file__; print("testing", s.__file__)'
	@build/wheel/venv/bin/python -m pytest -o pythonpath=tests $(or $(ARGS),tests/unit)

# The fleet's tests and its demo talk to a real MQTT broker. Where it is missing and may not be installed, tests are skipped
# and say so, and the demo ends with a sentence.
broker:
	@if ! PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'setup: installing mosquitto with apt-get'; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mosquitto; } \
	      >/dev/null || echo 'setup: mosquitto could not be installed; tests that need it will be skipped'; \
	  else \
	    echo 'setup: no MQTT broker; tests that need it will be skipped (Debian, Ubuntu: sudo apt-get install mosquitto)'; \
	  fi; \
	fi

# The playground's tests want a browser; likewise.
browser:
	@if ! command -v chromium >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'test: installing chromium with apt-get'; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
	      >/dev/null || echo 'test: chromium could not be installed; tests that need it will be skipped'; \
	  else \
	    echo 'test: no chromium; tests that need it will be skipped (Debian, Ubuntu: sudo apt-get install chromium)'; \
	  fi; \
	fi

lint: $(READY) ## ruff, formatting, types, import contracts, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py --check

format: $(READY) ## let ruff format the tree and mend what it can
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

proto: $(READY) ## generate shared/outrider_wire from proto/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py

bench: $(READY) ## measure the engine: steps, rows, and what our code adds to the model's forward
	@$(BIN)/outrider bench engine $(ARGS)

clean: ## remove .venv and everything that was built
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The stamp holds the path that .venv was made for: a tree that was copied or moved, or a set-up that was cut off, starts
# over; a change of the requirements only installs what changed.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

$(READY): pyproject.toml constraints.txt
	@python="$$($(find_python))"; \
	if [ "$$(cat $(READY) 2>/dev/null)" != "$(CURDIR)" ]; then \
	  echo "setup: making .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear .venv; \
	fi
	@echo "setup: installing torch and the build tools (a minute or two)"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') torch hatchling editables
	@echo "setup: installing outrider[$(EXTRAS)]"
	@$(PIP) --no-build-isolation --editable '.[$(EXTRAS)]'
	@printf '%s\n' '$(CURDIR)' > $(READY)
	@echo "setup: done"

# Prints the interpreter to use: 3.11 or newer, able to make environments. As root on Debian it installs what is missing.
define find_python
fits() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
first() { for name in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do if fits "$$name"; then echo "$$name"; return 0; fi; done; return 1; }; \
if first; then exit 0; fi; \
if [ -z '$(PYTHON)' ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo 'setup: installing python3 and python3-venv with apt-get' >&2; \
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv; } >&2; \
  if first; then exit 0; fi; \
fi; \
echo 'setup: no Python 3.11 or newer with the venv module$(if $(PYTHON), in PYTHON=$(PYTHON))' >&2; \
echo 'setup: on Debian 12 or newer: sudo apt-get install python3 python3-venv; elsewhere: make PYTHON=/path/to/python3' >&2; \
exit 1
endef

endif
