PY := .venv/bin/python
INSTALLED := .venv/.installed

.PHONY: install demo test test-anywhere test-slow gpu gpu-wheels bench readme results docs sync dist clean

install: $(INSTALLED)

$(INSTALLED): settings.ini setup.py pyproject.toml
	python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(INSTALLED)

demo: install                  ## the main job: train on human numbers, continue two prompts
	.venv/bin/rnn_fastai demo

test: export OMP_NUM_THREADS ?= 1   # small nets run faster side by side than on two threads each
test: install sync             ## everything that CI runs
	.venv/bin/ruff check .
	.venv/bin/mypy
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/nbdev-test --n-workers 2 --do-print --timing --cell-timeout 0
	$(PY) tools/check_wheel.py
	$(PY) -m pytest -q -n 2 --dist loadfile

test-anywhere: install         ## all notebooks and tests as on other processors, on one thread and two, and under load
	$(PY) tools/test_anywhere.py

test-slow: install             ## the long checks: several seeds, big sets
	$(PY) -m pytest -q -s -m slow

gpu-wheels: install            ## what a machine with a GPU, Python 3.12 and torch may lack for `make gpu`, and ids to train on
	$(PY) tools/gpu.py collect

gpu:                           ## on a machine with a GPU: tests of it, fastai and this package side by side, then a training
	python3 tools/gpu.py

bench: install                 ## fastai and this package side by side, in one process
	$(PY) benchmarks/run.py
	$(PY) benchmarks/fit.py
	$(PY) benchmarks/text.py
	$(PY) benchmarks/start.py
	$(PY) benchmarks/cells.py
	$(PY) benchmarks/inside.py
	$(PY) benchmarks/classifier.py
	$(PY) benchmarks/loss.py
	$(PY) benchmarks/tagger.py
	$(PY) benchmarks/entities.py
	$(PY) benchmarks/imdb.py
	$(PY) benchmarks/ulmfit.py
	$(PY) benchmarks/small_model.py
	$(PY) benchmarks/wikitext.py
	$(PY) benchmarks/generate.py
	$(PY) benchmarks/human_numbers.py
	$(PY) benchmarks/exported.py
	$(PY) benchmarks/serve.py
	$(PY) benchmarks/explorer.py
	$(PY) benchmarks/checkpoint.py
	$(PY) benchmarks/half.py
	$(PY) benchmarks/scale.py
	$(PY) benchmarks/shards.py

sync: install                  ## fails where notebooks, modules and README are not in step
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) tools/check_sync.py

readme: install                ## README.md from nbs/index.ipynb
	$(PY) tools/readme.py

results: install               ## docs/results.md from benchmarks/results
	$(PY) tools/results.py

docs: install                  ## the documentation as HTML, in site/; nothing is run, and no network is asked
	$(PY) tools/make_site.py

dist: install                  ## the wheel and the sdist, checked; tried in fresh environments: make dist TRY="python3.10 python3.14"
	$(PY) tools/make_dist.py $(TRY)

clean:
	rm -rf build dist out site *.egg-info
