# Everything runs in a virtual environment that the first command makes; the later ones find it ready.
#
#   make demo            the whole way on real data, then serves on 127.0.0.1:3000
#   make demo CHECK=1    the same, asks the running server once, prints the explanation, stops and exits
#   make drift           baseline traffic, then another domain's, and what the monitoring says of both; stays up
#   make drift CHECK=1   the same, then stops; exits with an error where the drift went unseen
#   make drift-check     the long measurements of drift: alerts on baseline and shifted traffic, influence drift, costs
#   make test            style, types, layers and unit tests, two at a time, then those that drive real servers, one by one
#   make matrix          the quick tests with the oldest and the newest supported BentoML, transformers and torch: hours
#   make matrix ONLY=oldest PYTEST_ARGS=tests/tasks    one entry, some tests
#   make bench           the measurements of benchmarks/: says how long each takes (most of a day), then prints the tables
#   make bench ONLY=query          those whose names begin so; make bench ONLY='query lds'
#   make docs-check      runs the commands of README.md and docs/ in their order, in an empty copy (long); LIST=1 lists them
#
# Where the package index offers only a CUDA build of torch, name the CPU wheel index of PyTorch in PIP_ARGS:
#   make demo PIP_ARGS='--extra-index-url <the address of PyTorch CPU wheels>'

PYTHON ?= python3
VENV ?= .venv
NAME ?= sentiment
CHECK ?=
ONLY ?=
LIST ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2

BIN := $(VENV)/bin
BEGAN := $(shell date +%s)
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --no-compile --quiet -c constraints-cpu.txt $(PIP_ARGS)

export BENTOML_DO_NOT_TRACK := True
# Packages are compiled when they are first imported. Where that is not to be kept, every server that starts does it again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := demo
.PHONY: demo drift drift-check docs-check test matrix bench clean
.DELETE_ON_ERROR:

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "bento-audit needs Python 3.11 to 3.13, $(PYTHON) is another; say which one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-%: $(VENV)/.made pyproject.toml constraints-cpu.txt
	@echo "Installing bento-audit[$*] into $(VENV), about two gigabytes ..."
	$(INSTALL) -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/bento-audit demo $(NAME) --began $(BEGAN) $(if $(filter-out 0 no false,$(CHECK)),--check)

drift: $(VENV)/.installed-demo
	$(BIN)/bento-audit drift watch $(NAME) $(if $(filter-out 0 no false,$(CHECK)),--check)

drift-check: $(VENV)/.installed-dev
	@$(BIN)/python benchmarks/bench.py --only recording_cost --only drift_alerts --only influence_drift

docs-check: $(VENV)/.installed-dev
	@$(BIN)/python docs/check_commands.py $(if $(filter-out 0 no false,$(LIST)),--list)

# Of a part chosen by PYTEST_ARGS, one of the two calls may have nothing to run: pytest's exit status 5.
NONE = $(if $(PYTEST_ARGS),5,0)
SLOWEST = --durations=25

# The small project that many tests use is made once for both calls, in a folder that goes with them.
test: $(VENV)/.installed-dev
	@export TEST_PROJECT_FOLDER=$$(mktemp -d); trap 'rm -rf "$$TEST_PROJECT_FOLDER"' EXIT; \
	  $(BIN)/python -m pytest -m 'not service' -n $(PYTEST_WORKERS) --dist loadfile $(SLOWEST) $(PYTEST_ARGS); units=$$?; \
	  case $$units in 0|$(NONE)) ;; *) exit $$units;; esac; \
	  $(BIN)/python -m pytest -m service $(SLOWEST) $(PYTEST_ARGS); servers=$$?; \
	  case $$servers in $(NONE)) exit $$units;; *) exit $$servers;; esac

matrix: $(VENV)/.installed-dev
	@$(BIN)/python tests/matrix.py --workers $(PYTEST_WORKERS) $(foreach one,$(ONLY),--only $(one)) $(if $(PYTEST_ARGS),--tests '$(PYTEST_ARGS)') \
	  $(if $(PIP_ARGS),--pip-args '$(PIP_ARGS)')

# The packages that peers.py compares with; its docstring says why they come alone and have a folder of their own.
build/peers/.installed: $(VENV)/.installed-dev benchmarks/peers/requirements.txt
	@absent=; for each in $$(grep -v '^#' benchmarks/peers/requirements.txt); do \
	  $(INSTALL) --no-deps --upgrade --target build/peers "$$each" \
	    || { absent=1; echo "$$each cannot be had here: peers.py will say so" >&2; }; done; \
	  test -n "$$absent" || touch $@

bench: $(VENV)/.installed-dev $(if $(or $(if $(ONLY),,all),$(findstring peers,$(ONLY))),build/peers/.installed)
	@$(BIN)/python benchmarks/bench.py $(foreach one,$(ONLY),--only $(one))

clean:
	rm -rf $(VENV) build dist
