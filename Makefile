# Every target makes the environment that it needs, from the lock file.
PYTHON ?= python3
VENV := .venv
VENV3 := .venv-tl3
RUN := $(VENV)/bin

.PHONY: demo test notebooks lanes check docs bench bench-plnd bench-tune bench-lens bench-sharing picture lock clean

demo: $(VENV)/.ready  ## find the language neurons of a real model, and prove them
	$(RUN)/lens-lang demo

# Two processes of one thread each: small models gain nothing from more threads.
PARALLEL = OMP_NUM_THREADS=1 $(1) -m pytest -n 2 --dist loadfile

test: $(VENV)/.ready  ## the whole test suite, on TransformerLens 4
	$(call PARALLEL,$(RUN)/python) --cov --cov-report=term:skip-covered --durations=25

notebooks: $(VENV)/.ready  ## execute the notebooks, small; copies with outputs in build/notebooks
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 --dist worksteal -m notebook --durations=0 tests/test_notebooks.py

lanes: $(VENV3)/.ready  ## the tests that every TransformerLens must pass, on TransformerLens 3
	$(call PARALLEL,$(VENV3)/bin/python) -m lane tests

check: $(VENV)/.ready  ## lint, formatting and types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

docs: $(VENV)/.ready  ## the documentation as a site, strictly; with outputs after `make notebooks`
	rm -rf docs/notebooks && mkdir docs/notebooks
	cp notebooks/*.ipynb docs/notebooks/
	if [ -d build/notebooks ]; then cp build/notebooks/*.ipynb docs/notebooks/; fi
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

bench: $(VENV)/.ready  ## overhead and memory of collecting, on the packaged model
	$(RUN)/python tests/benchmarks/bench_collect.py

bench-plnd: $(VENV)/.ready  ## time and memory of PLND, beside what it replaces
	$(RUN)/python tests/benchmarks/bench_plnd.py

bench-tune: $(VENV)/.ready  ## what tuning chosen neurons does and costs
	$(RUN)/python tests/benchmarks/bench_tune.py

bench-lens: $(VENV)/.ready  ## what reading layers by language costs
	$(RUN)/python tests/benchmarks/bench_lens.py

bench-sharing: $(VENV)/.ready  ## what dividing neurons by the languages that share them costs
	$(RUN)/python tests/benchmarks/bench_sharing.py

picture: $(VENV)/.ready  ## the README's picture, from the last demo (needs Chromium)
	$(RUN)/python docs/picture.py effect runs/demo docs/perplexity.png

# Only when asked: a clone's dates say nothing of what is newer. A local build's tag (+cpu) is cut off:
# which build to take is the reader's choice.
lock: $(VENV)/.ready  ## write the lock files anew, after a change of dependencies
	for lane in tl4 tl3; do \
	  $(RUN)/python -m piptools compile -q --strip-extras --no-annotate --extra dev --unsafe-package lens-lang \
	    --no-emit-find-links --no-emit-index-url --no-emit-trusted-host \
	    --constraint locks/$$lane.in --output-file locks/$$lane.txt pyproject.toml && \
	  sed -i 's/+cpu//; /file:/d' locks/$$lane.txt || exit 1; \
	done

clean:
	rm -rf $(VENV) $(VENV3) build site runs

$(VENV)/.ready: locks/tl4.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r locks/tl4.txt
	$(VENV)/bin/pip install -q --no-deps -e .
	touch $@

$(VENV3)/.ready: locks/tl3.txt
	$(PYTHON) -m venv $(VENV3)
	$(VENV3)/bin/pip install -q -r locks/tl3.txt
	$(VENV3)/bin/pip install -q --no-deps -e .
	touch $@
