"""Do hostile flags, JSON fields and files end in one clear line? `python -m benchmarks.fuzz`. Writes results/fuzz.json.

Every flag of every command with hostile values; every field of a run's JSON files; pictures, .npz and safetensors files
with random damage. A case runs in a child process of its own, in a folder of its own. It is a finding where the child
prints a traceback, ends in an error that was not foreseen, dies of a signal, takes more than 20 seconds of processor
time (or, twice, two minutes of the clock: it may wait for something), or ends well with a wrong result. Of what ends
well, the files are read: what was asked for is there, in the number asked for, all figures are finite, the settings
that were recorded are those that were given, and a damaged array or tensor was not used. The seed decides the damage
and the order; it is the date unless given, so that another day tries other cases. A finding becomes a test.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import PositiveFloat
from safetensors import SafetensorError
from safetensors.torch import load

from benchmarks.children import Command, ended, last_line, printed, seed_or_date, start
from farmer_ref import ablate, apply, distill, evaluate, parameters, sample, train
from farmer_ref.data import __main__ as look
from farmer_ref.model.pretrained import STUDENT
from farmer_ref.support import cli
from farmer_ref.support.errors import InputError, shown
from farmer_ref.support.files import Logged, read_metrics, write_json
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import Whole, parse_json, settings_class
from farmer_ref.training.checkpoint import checkpoints, last_state
from farmer_ref.training.presets import DISTILLATIONS
from farmer_ref.training.runs import Run

SECONDS, CLOCK = 20, 120  # of a case: of the processor, and of the clock
VALUES = ("", "-1", "0", "1", "nan", "inf", "1e308", "-1e308", "1000000000000000000", "9" * 5000, "abc", "x" * 5000)
VALUES += ("../../x", "\udcff", "a\nb")
JSON_VALUES = (None, True, -1, 0, 10**30, 1e308, "", "\ud800", [], {"a": [[]]})
DAMAGED = 60  # files of each kind
TRAIN = ["--preset", "tiny", "--steps", "2", "--max-minutes", "0.05", "--validate-every", "0", "--sample-every", "0"]
TABLE = ["--figure", "6b", "--steps-per-run", "2", "--samples", "20", "--images", "20", "--device", "cpu"]


@settings_class
class FuzzBenchmark:
    """What to try."""

    seed: Whole = 0
    """Decides the damage and the order of the cases; 0: the date, as 20260131."""
    minutes: PositiveFloat | None = None
    """End after so many minutes, with the cases tried until then, which are a random part of all; default: try all."""
    out: str = "fuzz"
    """The name of the file in results/."""


Check = Callable[["Case", Path], str]
"""What is wrong with what a case that ended well left in its folder, in words; empty if nothing."""


@dataclasses.dataclass
class Case:
    """A command line, tried in a folder that `prepare` fills."""

    kind: str
    name: str
    main: Command
    arguments: list[str]
    check: Check
    prepare: Callable[[Path], None] = lambda folder: None

    def given(self, flag: str) -> str | None:
        """The value of a flag, which counts the last time that it is there."""
        places = [place for place, argument in enumerate(self.arguments) if argument == flag]
        return self.arguments[places[-1] + 1] if places else None


# -- what ends well is right -------------------------------------------------------------------------------------------


def not_as_given(case: Case, recorded: dict[str, Any], *, but: tuple[str, ...] = ()) -> str:
    """The first recorded setting that is not what the command line said."""
    for flag in case.arguments:
        name = flag.removeprefix("--").replace("-", "_")
        value: Any = recorded
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not flag.startswith("--") or name in but or value is None or isinstance(value, bool | list | dict):
            continue
        text = case.given(flag)
        same = value == text if isinstance(value, str) else number(text) == value
        if not same:
            return f"{name} is recorded as {shown(value, 40)}"
    return ""


def number(text: str | None) -> float | int | None:
    """A number as it was written, exact if it is whole."""
    try:
        return int(text or "") if re.fullmatch(r"-?\d{1,4000}", text or "") else float(text or "")
    except ValueError:
        return None


def bad_log(folder: Path) -> str:
    """What is wrong with the end of metrics.jsonl, which the command itself wrote: null is a figure that was not
    finite."""
    records = read_metrics(folder)
    bad = not records or any(value is None for value in records[-1].values())
    return "metrics.jsonl ends without finite values" if bad else ""


def check_run(case: Case, folder: Path) -> str:
    """A run that can be read, with the settings given, and all of its steps unless its time was up."""
    run = folder / str(case.given("--out"))
    saved = json.loads((run / "config.json").read_text())
    settings = saved["training"] | {"model": saved["model"]}
    Run.open(run).load()
    done = int(checkpoints(run)[-1].name.removeprefix("step-"))
    limit, spent = settings["max_minutes"], last_state(run).seconds / 60
    if done < settings["steps"] and (limit is None or spent < limit):
        return f"{done} steps of {settings['steps']}, in {spent:.3f} minutes of {limit}"
    return not_as_given(case, settings, but=("resume",))


def check_train(case: Case, folder: Path) -> str:
    """A run, whose log ends with finite figures."""
    return check_run(case, folder) or bad_log(folder / str(case.given("--out")))


def line_kept(line: str) -> Check:
    """A resumed run, whose log still begins with the line that was put there: null is allowed in it."""

    def check(case: Case, folder: Path) -> str:
        first, *_ = read_metrics(folder / str(case.given("--out")))
        kept = first == parse_json(Logged, line).model_dump()
        return check_run(case, folder) or ("" if kept else "metrics.jsonl has lost its line")

    return check


def check_distill(case: Case, folder: Path) -> str:
    """A student, the settings given, and finite figures."""
    run = folder / (case.given("--out") or str(case.given("--run")))
    opened = Run.open(run)
    opened.load_student(opened.load())
    return not_as_given(case, json.loads((run / "distillation" / "config.json").read_text())) or bad_log(
        run / "distillation"
    )


def check_sample(case: Case, folder: Path) -> str:
    """As many images as were asked for, of the labels asked for."""
    out = folder / str(case.given("--out"))
    if out.suffix == ".png":
        return check_picture(case, folder)
    if out.suffix != ".npz":
        found, wanted = len(list(out.glob("*.png"))), number(case.given("--count"))
        return "" if found == wanted else f"{found} files for {wanted}"
    with np.load(out) as file:
        images, labels = file["arr_0"], file["arr_1"]
    wanted, label = number(case.given("--count")), number(case.given("--labels"))
    if images.shape != (wanted, 8, 8, 3):
        return f"images are {images.shape}"
    return "" if label is None or (labels == label).all() else f"labels are {labels.tolist()}"


def check_picture(case: Case, folder: Path) -> str:
    """A picture, or a folder of them, that can be opened."""
    out = folder / str(case.given("--out"))
    for path in sorted(out.glob("*.png")) if out.is_dir() else [out]:
        with Image.open(path) as image:
            image.load()
            return "" if min(image.size) >= 8 else f"{path.name} is {image.size}"
    return f"nothing in {out.name}"


def numbers_in(value: Any) -> Iterator[float]:
    """All numbers in a JSON value."""
    if isinstance(value, float | int):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from numbers_in(inner)


def figures_in(path: Path) -> dict[str, Any]:
    """A JSON file of figures. Raises `InputError` where one is not a finite number."""
    figures = json.loads(path.read_text())
    if not all(math.isfinite(value) for value in numbers_in(figures)):
        raise InputError(f"{path.name} holds a number that is not finite")
    return figures


def check_evaluate(case: Case, folder: Path) -> str:
    """Finite figures, of the images, draws, samples and settings given, if they were to be written."""
    if not case.given("--out"):
        return check_printed(case, folder)
    figures, most = figures_in(folder / str(case.given("--out"))), number(case.given("--images"))
    if most is not None and figures["images"] > most:
        return f"{figures['images']} images"
    return not_as_given(case, figures, but=("dataset", "images"))


def check_images(case: Case, folder: Path) -> str:
    """A row of figures for each image, if they were to be written; probabilities that add up to 1."""
    if not case.given("--out"):
        return check_printed(case, folder)
    figures = figures_in(folder / str(case.given("--out")))
    rows, wanted = figures["images"], number(case.given("--count")) or 1
    if not 1 <= len(rows) <= wanted:
        return f"{len(rows)} rows for {wanted} images"
    sums = [sum(row["probabilities"]) for row in rows if "probabilities" in row]
    if any(abs(total - 1) > 1e-6 for total in sums):
        return f"probabilities add up to {sums}"
    return not_as_given(case, figures)


def check_table(case: Case, folder: Path) -> str:
    """The rows of the table, each with as many finite figures as there are seeds."""
    (figures,) = [figures_in(path) for path in (folder / str(case.given("--out"))).glob("figure6b*.json")]
    counts = {len(row["bits_per_dim"]["seeds"]) for row in figures["rows"]}
    if counts != {figures["seeds"]}:
        return f"{counts} figures for {figures['seeds']} seeds"
    return not_as_given(case, figures, but=("device",))


def check_printed(case: Case, folder: Path) -> str:
    """Something was printed, without a number that is not finite."""
    text = printed(folder, "stdout")
    return "printed no finite numbers" if not text or re.search(r"\b(nan|inf)\b", text) else ""


def check_look(case: Case, folder: Path) -> str:
    """What is read was printed and drawn."""
    return check_printed(case, folder) or check_picture(case, folder)


# -- cases -------------------------------------------------------------------------------------------------------------


class Started(Exception):
    """A command went as far as to start other commands, which are tried for themselves."""


def ablate_alone(arguments: list[str]) -> None:
    """`ablate`, without the training runs that it would start where they are missing."""

    def start_nothing(*_: Any) -> None:
        raise Started

    ablate.Runs._run = start_nothing
    try:
        ablate.main(arguments)
    except Started:
        print("started a run")


def check_ablate(case: Case, folder: Path) -> str:
    """Its table, unless it started runs."""
    return "" if printed(folder, "stdout").endswith("started a run\n") else check_table(case, folder)


def flag_cases(run: Path, runs: Path, pictures: Path) -> Iterator[Case]:
    """Every flag of every command with every hostile value; the last value of a flag counts."""
    few, on = ["--count", "1"], ["--run", str(run), "--device", "cpu"]
    looked = ["--dataset", f"folder:{pictures}", "--out", "sheet.png"]
    defaults = {
        "train": (train.main, train.PRESETS["tiny"], [*TRAIN, "--device", "cpu", "--out", "run"], check_train),
        "distill": (
            distill.main,
            distill.DistillConfig(**DISTILLATIONS["digits"]),
            [*on, *TRAIN[2:], "--preset", "digits", "--out", "student"],
            check_distill,
        ),
        "sample": (
            sample.main,
            sample.SampleConfig(),
            [*on, "--rows", "1", "--count", "2", "--batch-size", "2", "--out", "a.npz"],
            check_sample,
        ),
        "evaluate": (
            evaluate.main,
            evaluate.EvaluateConfig(),
            [*on, "--images", "4", "--draws", "1", "--samples", "10", "--out", "figures.json"],
            check_evaluate,
        ),
        "ablate": (
            ablate_alone,
            ablate.AblateConfig(),
            [*TABLE, "--runs", str(runs), "--out", "results"],
            check_ablate,
        ),
        "parameters": (parameters.main, parameters.ParametersConfig(), ["--preset", "tiny"], check_printed),
        "data": (look.main, look.LookConfig(), looked, check_look),
    }
    quick: dict[str, tuple[list[str], Check]] = {
        "inpaint": (["--samples", "1", "--moves", "1", "--particles", "2", "--out", "a.png"], check_picture),
        "edit": (["--out", "a.png"], check_picture),
        "anomaly": (["--draws", "1", "--reference", "10", "--out", "figures.json"], check_images),
        "classify": (["--draws", "1", "--out", "figures.json"], check_images),
    }
    for name, (arguments, check) in quick.items():
        defaults[name] = (apply.main, apply.RUNS[name][0], [name, *on, *few, *arguments], check)
    for name, (main, default, arguments, check) in defaults.items():
        for flag in cli.flags(default):
            own = [*arguments, "--out", "a.png"] if (name, flag) == ("sample", "--rows") else arguments
            for value in VALUES:
                yield Case("flag", f"{name} {flag} {shown(value, 40)}", main, [*own, flag, value], check)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The places of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def json_cases(run: Path) -> Iterator[Case]:
    """Every field of a run's config.json, state.json, metrics.jsonl and distillation/config.json."""
    resume = [*TRAIN, "--device", "cpu", "--resume", "--out", "run"]
    drawing = ["--run", "run", "--device", "cpu", "--rows", "1", "--out", "a.png"]
    again = [*TRAIN[2:], "--run", "run", "--device", "cpu", "--preset", "digits", "--resume"]
    state = checkpoints(run)[-1].relative_to(run) / "state.json"
    files = {
        "config.json": [(sample.main, drawing, check_sample), (train.main, resume, check_train)],
        str(state): [(train.main, resume, check_train)],
        "metrics.jsonl": [(train.main, resume, check_train)],
        "distillation/config.json": [(distill.main, again, check_distill)],
    }
    for name, commands in files.items():
        content = json.loads(
            (run / name).read_text().splitlines()[0] if name.endswith("l") else (run / name).read_text()
        )
        for place in places(content):
            for value in JSON_VALUES:
                changed = json.loads(json.dumps(content))
                inner = changed
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = value
                text = json.dumps(changed) + "\n" * (name.endswith("l")) * 2

                def prepare(folder: Path, name: str = name, text: str = text) -> None:
                    shutil.copytree(run, folder / "run")
                    (folder / "run" / name).write_text(text)

                what = f"{name}: {'.'.join(map(str, place))} = {shown(value, 40)}"
                for main, arguments, check in commands:
                    judge = line_kept(text) if name == "metrics.jsonl" else check
                    yield Case("JSON field", what, main, arguments, judge, prepare)


def damaged(content: bytes, generator: random.Random) -> bytes:
    """A file cut off, with flipped bytes, with bytes inserted, or of random bytes."""
    kind, changed = generator.randrange(4), bytearray(content)
    if kind == 0:
        return content[: generator.randrange(len(content))]
    if kind == 1:
        for _ in range(generator.choice([1, 10, 100])):
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    elif kind == 2:
        place = generator.randrange(len(changed))
        changed[place:place] = generator.randbytes(generator.choice([1, 8, 4096]))
    else:
        return generator.randbytes(generator.choice([0, 1, 1000]))
    return bytes(changed)


def same_tensors(source: Path, name: str) -> Check:
    """Damage to tensors that went unnoticed did not change them."""

    def check(case: Case, folder: Path) -> str:
        try:
            found = load((folder / name).read_bytes()) if not case.arguments[0].startswith("--preset") else None
        except SafetensorError:
            return "a file that is not a safetensors file was read"
        whole = load(source.read_bytes())
        if found is None:  # training went on, and replaced it
            return "a damaged checkpoint was resumed"
        same = found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
        return "" if same else "tensors that had changed were used"

    return check


def file_cases(run: Path, folder: Path, generator: random.Random) -> Iterator[Case]:
    """Pictures, arrays and weights with random damage."""
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for ending in ("png", "jpg", "gif", "bmp", "webp"):
        Image.fromarray(pixels).save(folder / f"a.{ending}")
    np.savez(folder / "a.npz", arr_0=np.repeat(pixels[None, :, :, None], 12, 0).repeat(3, 3))
    on, shard = ["--device", "cpu"], next(checkpoints(run)[-1].glob("*.safetensors")).relative_to(run)
    fid = ["--run", str(run), "--fid", "--extractor", "classifier", "--images", "20", "--samples-from", "a.npz"]

    def same_array(case: Case, place: Path) -> str:
        with np.load(place / "a.npz") as found, np.load(folder / "a.npz") as whole:
            same = np.array_equal(found["arr_0"], whole["arr_0"])
        return check_evaluate(case, place) if same else "an array that had changed was used"

    sorts: list[tuple[str, Path, str, Command, list[str], Check]] = [
        (
            "picture",
            folder / f"a.{ending}",
            f"images/a.{ending}",
            apply.main,
            ["classify", "--run", str(run), "--images", "images", "--draws", "1", "--out", "figures.json", *on],
            check_images,
        )
        for ending in ("png", "jpg", "gif", "bmp", "webp")
    ]
    sorts += [("npz", folder / "a.npz", "a.npz", evaluate.main, [*fid, "--out", "figures.json", *on], same_array)] * 5
    drawing = ["--run", "run", "--rows", "1", "--out", "a.png", *on]
    resume = [*TRAIN, *on, "--steps", "12", "--resume", "--out", "run"]
    for name, main, arguments in (
        ("model.safetensors", sample.main, drawing),
        (STUDENT, sample.main, [*drawing, "--student"]),
        *[(str(shard), train.main, resume)] * 3,
    ):
        check = same_tensors(run / name, f"run/{name}")
        sorts.append(("safetensors", run / name, f"run/{name}", main, arguments, check))
    for kind, source, name, main, arguments, check in sorts:
        for number in range(DAMAGED // 5):
            content = damaged(source.read_bytes(), generator)

            def prepare(folder: Path, name: str = name, content: bytes = content) -> None:
                if name.startswith("run/"):
                    shutil.copytree(run, folder / "run")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).unlink(missing_ok=True)
                (folder / name).write_bytes(content)

            yield Case(kind, f"{name} {number}", main, arguments, check, prepare)


def attempt(case: Case, folder: Path) -> tuple[str, str]:
    """Run a case in a child: its outcome in a word, and its last line on standard error, or what is wrong."""
    code, here = 0, folder
    for number in range(2):  # the clock goes on where the machine is too busy for the child
        here = folder / str(number) / "here"  # so that ../../x stays inside
        here.mkdir(parents=True)
        case.prepare(here)
        code = ended(start(case.main, case.arguments, here, seconds=SECONDS, clock=CLOCK))
        if code != -signal.SIGALRM:
            break
    folder = here
    if code in (-signal.SIGALRM, -signal.SIGPROF):
        return "hang", last_line(folder)
    if "Traceback" in printed(folder):
        return "traceback", last_line(folder)
    if code:
        return {2: "refused", 1: "not foreseen"}.get(code, f"ended with {code}"), last_line(folder)
    there = os.getcwd()
    os.chdir(folder)
    try:
        wrong = case.check(case, folder)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    finally:
        os.chdir(there)
    return ("wrong result", wrong[:300]) if wrong else ("accepted", "")


def prepared(home: Path) -> tuple[Path, Path, Path]:
    """What the cases work with: a run with a student, the runs of a table, and a folder of pictures."""
    run, runs, pictures = home / "trained", home / "runs", home / "pictures"
    train.main([*TRAIN[:-4], "--steps", "10", "--checkpoint-every", "5", "--device", "cpu", "--out", str(run)])
    distill.main(["--run", str(run), *TRAIN[2:], "--device", "cpu"])
    for number in range(40):
        (pictures / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(image).save(pictures / "ab"[number % 2] / f"{number}.png")

    def in_this_process(_: ablate.Runs, command: str, *arguments: object) -> None:
        {"train": train.main, "evaluate": evaluate.main}[command]([*map(str, arguments), "--device", "cpu"])

    ablate.Runs._run = in_this_process
    ablate.main([*TABLE, "--side-by-side", "1", "--runs", str(runs), "--out", str(home / "results")])
    return run, runs, pictures


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.fuzz", FuzzBenchmark(), "Try hostile flags, JSON fields and files.", argv)
    torch.set_num_threads(1)
    seed, made, began = seed_or_date(config.seed), provenance(torch.device("cpu")), time.monotonic()
    print(f"seed {seed}", flush=True)
    generator = random.Random(seed)
    outcomes: dict[str, Counter[str]] = {}
    findings = []
    with tempfile.TemporaryDirectory() as root:
        home = Path(root)
        run, runs, pictures = prepared(home)
        cases = [*flag_cases(run, runs, pictures), *json_cases(run), *file_cases(run, home, generator)]
        generator.shuffle(cases)
        cases.sort(key=lambda case: case.kind in ("flag", "JSON field"))  # the files first: they are few
        for number, case in enumerate(cases):
            if config.minutes is not None and time.monotonic() - began > 60 * config.minutes:
                break
            folder = home / "cases" / str(number)
            outcome, line = attempt(case, folder)
            outcomes.setdefault(case.kind, Counter())[outcome] += 1
            if outcome not in ("refused", "accepted"):
                findings.append({"kind": case.kind, "case": case.name, "outcome": outcome, "line": line})
                print(f"{outcome}: {case.name}: {line}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    total = sum(sum(counts.values()) for counts in outcomes.values())
    figures = {kind: dict(sorted(counts.items())) for kind, counts in sorted(outcomes.items())}
    record = {**made, **dataclasses.asdict(config), "seed": seed, "inputs": total, "of": len(cases)}
    write_json(ROOT / "results" / f"{config.out}.json", record | {"outcomes": figures, "findings": findings})
    print(f"{total} inputs of {len(cases)}, {len(findings)} findings; {figures}")


if __name__ == "__main__":
    cli.run(main)
