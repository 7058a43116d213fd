# Every target works on a fresh clone: it creates .venv, or updates it when it is stale.
PYTHON ?= python3
RUN := runs/digits
BIN := .venv/bin
ABLATE := $(BIN)/python -m farmer_ref.ablate --out results
# A clone of the public TARFlow code (github.com/apple/ml-tarflow), which "make check" then compares with.
TARFLOW ?=
# A clone of a PyTorch port of JetFormer (github.com/alexojica/JetFormer): with both, "make check" has a contest.
JETFORMER ?=

.PHONY: train quick test project tests course notebooks book refresh check check-gpu format clean

train: .venv/.installed
	$(BIN)/python -m farmer_ref.train --preset digits --out $(RUN) --max-minutes 6 --resume
	$(BIN)/python -m farmer_ref.evaluate --run $(RUN) --out $(RUN)/test.json
	$(BIN)/python -m farmer_ref.sample --run $(RUN) --out $(RUN)/samples.png

# One thread: the tests start processes of their own, and multi-threaded processes on two cores starve each other.
quick test project tests course notebooks book check: export OMP_NUM_THREADS = 1

# The mathematics alone, in less than a minute.
quick: .venv/.installed
	$(BIN)/python -m pytest tests/model farmer_ref/model

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs 2 project tests course

# The book, its live page and figures, and the project's own files, in browsers where there are any.
project: .venv/.installed
	$(BIN)/python -m pytest tests/project

tests: .venv/.installed
	$(BIN)/python -m pytest --ignore tests/project

course: .venv/.installed
	$(BIN)/python -m pytest --nbval-lax notebooks

# Make each notebook's .ipynb from its .py and run it; NAMES="01a_change_of_variables ..." selects some.
notebooks: .venv/.installed
	$(BIN)/python notebooks/execute.py $(NAMES)

# The book, to read from the file system: book/_build/html/index.html. Warnings are errors.
book: .venv/.installed
	$(BIN)/python -m book.build

# What is generated and committed: the README's figures, the verdicts in results/ and their page.
refresh: .venv/.installed
	$(BIN)/python -m book.refresh

# Measure every figure and write it to results/: many hours on 2 cores (downloads MNIST and CIFAR-10).
check: .venv/.installed
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m benchmarks.digits
	$(BIN)/python -m benchmarks.digits --preset digits-noise --seeds 0
	$(BIN)/python -m farmer_ref.sample --run digits --guidance 1 --out results/digits_samples.png
	$(BIN)/python -m benchmarks.guidance
	$(BIN)/python -m benchmarks.distillation
	$(BIN)/python -m benchmarks.distillation --students inverse/hidden inverse/output inverse/projected --steps 2000 \
		--out distillation_losses
	$(BIN)/python -m benchmarks.distillation --students inverse/hidden --seeds 0 --steps 4000 --dropout 0.1 --out student
	$(BIN)/python -m farmer_ref.train --preset mnist-p2 --model.noise-width 0 --out runs/mnist-p2-uniform --max-minutes 98 \
		--resume
	$(BIN)/python -m torch.distributed.run --nproc-per-node 2 -m farmer_ref.train --preset mnist-p2 \
		--init-from runs/mnist-p2-uniform --model.noise-width 16 --batch-size 32 --out runs/mnist-p2-noise --max-minutes 90 --resume
	$(BIN)/python -m torch.distributed.run --nproc-per-node 2 -m farmer_ref.train --preset mnist-p2 \
		--init-from runs/mnist-p2-noise --batch-size 32 --out runs/mnist-p2-third --max-minutes 62 --resume
	$(BIN)/python -m torch.distributed.run --nproc-per-node 2 -m farmer_ref.train --preset mnist-p2 \
		--init-from runs/mnist-p2-third --batch-size 32 --out runs/mnist-p2 --max-minutes 60 --resume
	$(BIN)/python -m benchmarks.mnist --stage classifier
	$(BIN)/python -m benchmarks.mnist --stage model --samples 500 --draws 4
	$(BIN)/python -m farmer_ref.distill --run runs/mnist-p2 --resume --form inverse --batch-size 16 --learning-rate 2e-3 --ema-decay 0.99 --max-minutes 11
	$(BIN)/python -m benchmarks.mnist --stage student --samples 500
	$(BIN)/python -m farmer_ref.train --preset mnist --out runs/mnist --max-minutes 97 --resume
	$(BIN)/python -m benchmarks.mnist --stage model --preset mnist --run runs/mnist --samples 500
	$(BIN)/python -m farmer_ref.distill --run runs/mnist --resume --form inverse --batch-size 32 --learning-rate 2e-3 --ema-decay 0.99 --max-minutes 12
	$(BIN)/python -m benchmarks.mnist --stage student --preset mnist --run runs/mnist --samples 500
	$(BIN)/python -m farmer_ref.train --preset mnist-noise --out runs/mnist-noise --max-minutes 65 --resume
	$(BIN)/python -m benchmarks.mnist --stage model --preset mnist-noise --run runs/mnist-noise --samples 500
	$(BIN)/python -m benchmarks.mnist --stage guidance --preset mnist --samples 500 --seed 2
	$(BIN)/python -m benchmarks.cifar10 --processes 2
	$(BIN)/python -m benchmarks.denoise
	$(BIN)/python -m benchmarks.pixels --steps 1000 --samples 300
	$(ABLATE) --table 3 4 5 --figure 6a 6b 7 8 --steps-per-run 2500 --seeds 3
	$(ABLATE) --data mnist-quick --pixels histogram --table 3 4 5 --figure 6a 6b 7 8 --steps-per-run 1600 --seeds 3 --images 1000
	$(ABLATE) --data mnist-quick --pixels histogram --table 4 --steps-per-run 8000 --seeds 3 --other-seeds 1 --images 1000 --suffix _long
	$(ABLATE) --basis --basis-steps 600 --seeds 3 --samples 200
	$(ABLATE) --basis --basis-steps 2700 --seconds-per-run 300 --seeds 3 --other-seeds 1 --samples 200 --suffix _long
	$(ABLATE) --basis --basis-steps 600 --data cifar10-crops --seeds 3 --samples 200 --images 1000
	$(BIN)/python -m benchmarks.early_guidance
	$(BIN)/python -m benchmarks.healthy
	$(BIN)/python -m benchmarks.live
	$(BIN)/python -m benchmarks.threads
	$(BIN)/python -m benchmarks.cpu_training --before a9edf06 --compiled
	$(BIN)/python -m benchmarks.latency --compiled --seconds 0.7
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.course
	$(BIN)/python -m benchmarks.applications
	$(BIN)/python -m benchmarks.fuzz
	$(BIN)/python -m benchmarks.kills
	$(BIN)/python -m benchmarks.inverses $(if $(TARFLOW),--tarflow $(TARFLOW))
	$(if $(TARFLOW),$(BIN)/python -m benchmarks.tarflow --tarflow $(TARFLOW))
	$(if $(and $(TARFLOW),$(JETFORMER)),$(BIN)/python -m benchmarks.rivals --tarflow $(TARFLOW) --jetformer $(JETFORMER) \
		--minutes 7 --validation-images 250 --test-images 1000)
	$(BIN)/python -m book.refresh

# Measure what needs a GPU (downloads the data sets into data/).
check-gpu: .venv/.installed
	$(BIN)/python -m pytest tests/training/test_cuda.py
	$(BIN)/python -m benchmarks.scaling --preset farmer-1.1b-p16
	$(BIN)/python -m benchmarks.inverses $(if $(TARFLOW),--tarflow $(TARFLOW))
	$(if $(TARFLOW),$(BIN)/python -m benchmarks.tarflow --tarflow $(TARFLOW) --blocks 28 --layers 4 --width 768 --patch-size 16 --out results/tarflow_speed_cuda.json)
	for preset in mnist-large cifar10; do \
	    $(BIN)/python -m farmer_ref.train --preset $$preset --out runs/$$preset --max-minutes 8 --compile --resume && \
	    $(BIN)/python -m farmer_ref.evaluate --run runs/$$preset --out results/$$preset.json && \
	    $(BIN)/python -m farmer_ref.sample --run runs/$$preset --guidance 1 --out results/$${preset}_samples.png || exit 1; \
	    $(ABLATE) --all --data $${preset%-large} --seconds-per-run 60 --seeds 3 || exit 1; \
	done

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis book/_build
