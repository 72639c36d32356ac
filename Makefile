# demo and test are the two commands to know; each makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
# Memory that nobody wrote reads as 3e38, so that a kernel that reads it is wrong in every run.
POISON := MALLOC_PERTURB_=128

.PHONY: demo test test-slow fuzz lint bench docs site clean

demo: .venv/.installed
	$(BIN)/mattecompress demo -o demo

test: .venv/.installed
	$(POISON) $(BIN)/pytest -q -n 2 --dist loadfile

test-slow: .venv/.installed
	$(POISON) $(BIN)/pytest -q -m slow

fuzz: .venv/.installed
	$(BIN)/pytest -q tests/fuzz --hypothesis-profile=fuzz --hypothesis-show-statistics

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mattecompress

bench: .venv/.bench
	$(BIN)/python benchmarks/frame_time.py
	$(BIN)/python benchmarks/kernel_limits.py

docs: .venv/.installed
	$(BIN)/python docs/generate.py

site: .venv/.docs docs
	$(BIN)/sphinx-build -q -W --keep-going -n -c docs . build/site
	@echo build/site/index.html

.venv/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c .ci/constraints.txt -e '.[media,onnx,flow,tvm,plot,vit,dev]'
	bash .ci/packages
	touch $@

.venv/.bench: .venv/.installed
	$(BIN)/pip install -q --disable-pip-version-check -c .ci/constraints.txt -e '.[media,onnx,flow,tvm,bench]'
	touch $@

.venv/.docs: .venv/.installed
	$(BIN)/pip install -q --disable-pip-version-check -c .ci/constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf .venv build demo
