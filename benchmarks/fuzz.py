"""Do hostile flags, JSON fields and files end in one clear line? `python -m benchmarks.fuzz`. Writes results/fuzz.json.

Every flag of train, distill, sample, evaluate, parameters and the four applications with hostile values; every field of
a run's JSON files; pictures, .npz and safetensors files with random damage. A case runs in a child process of its own,
in a folder of its own. It is a finding where the child prints a traceback, ends in an error that was not foreseen, dies
of a signal, takes more than 20 seconds, or ends well and leaves figures that are no numbers. The seed decides the
damage and the order; it is the date unless given, so that another day tries other cases. A finding becomes a test.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import PositiveInt

from farmer_ref import apply, distill, evaluate, parameters, sample, train
from farmer_ref.support import cli
from farmer_ref.support.errors import shown
from farmer_ref.support.files import write_json
from farmer_ref.support.record import ROOT, provenance
from farmer_ref.support.settings import Whole, settings_class
from farmer_ref.training.checkpoint import checkpoints

SECONDS = 20  # of a case
VALUES = ("", "-1", "0", "1", "nan", "inf", "1e308", "-1e308", "1000000000000000000", "9" * 5000, "abc", "x" * 5000)
VALUES += ("../../x", "\udcff", "a\nb")
JSON_VALUES = (None, True, -1, 0, 10**30, 1e308, "", "\ud800", [], {"a": [[]]})
DAMAGED = 60  # files of each kind
TRAIN = ["--preset", "tiny", "--steps", "2", "--max-minutes", "0.05", "--validate-every", "0", "--sample-every", "0"]


@settings_class
class FuzzBenchmark:
    """What to try."""

    seed: Whole = 0
    """Decides the damage and the order of the cases; 0: the date, as 20260131."""
    cases: PositiveInt | None = None
    """At most this many, chosen at random; default: all."""
    out: str = "fuzz"
    """The name of the file in results/."""


@dataclasses.dataclass
class Case:
    """A command line, tried in a folder that `prepare` fills."""

    kind: str
    name: str
    main: Callable[[list[str]], None]
    arguments: list[str]
    prepare: Callable[[Path], None] = lambda folder: None


def flag_cases(run: Path) -> Iterator[Case]:
    """Every flag of every command with every hostile value; the last value of a flag counts."""
    few, on = ["--count", "1"], ["--run", str(run), "--device", "cpu"]
    commands: dict[str, tuple[Callable, type, list[str]]] = {
        "train": (train.main, train.TrainConfig, [*TRAIN, "--device", "cpu", "--out", "run"]),
        "distill": (distill.main, distill.DistillConfig, [*on, *TRAIN[2:], "--preset", "digits", "--out", "student"]),
        "sample": (sample.main, sample.SampleConfig, [*on, "--rows", "1", "--count", "2", "--batch-size", "2"]),
        "evaluate": (
            evaluate.main,
            evaluate.EvaluateConfig,
            [*on, "--images", "4", "--draws", "1", "--samples", "10", "--out", "figures.json"],
        ),
        "parameters": (parameters.main, parameters.ParametersConfig, ["--preset", "tiny"]),
    }
    quick = {
        "inpaint": ["--samples", "1", "--moves", "1", "--particles", "2"],
        "edit": [],
        "anomaly": ["--draws", "1", "--reference", "10", "--out", "figures.json"],
        "classify": ["--draws", "1", "--out", "figures.json"],
    }
    for name, arguments in quick.items():
        commands[name] = (apply.main, type(apply.RUNS[name][0]), [name, *on, *few, *arguments])
    for name, (main, kind, arguments) in commands.items():
        for flag in cli.flags(kind()):
            for value in VALUES:
                yield Case("flag", f"{name} {flag} {shown(value, 40)}", main, [*arguments, flag, value])


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
        "config.json": [(sample.main, drawing), (train.main, resume)],
        str(state): [(train.main, resume)],
        "metrics.jsonl": [(train.main, resume)],
        "distillation/config.json": [(distill.main, again)],
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
                for main, arguments in commands:
                    yield Case("JSON field", what, main, arguments, prepare)


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


def file_cases(run: Path, folder: Path, generator: random.Random) -> Iterator[Case]:
    """Pictures, arrays and weights with random damage."""
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for ending in ("png", "jpg", "gif", "bmp", "webp"):
        Image.fromarray(pixels).save(folder / f"a.{ending}")
    np.savez(folder / "a.npz", arr_0=np.repeat(pixels[None, :, :, None], 12, 0).repeat(3, 3))
    on, shard = ["--device", "cpu"], next(checkpoints(run)[-1].glob("*.safetensors")).relative_to(run)
    fid = ["--run", str(run), "--fid", "--extractor", "classifier", "--images", "20", "--samples-from", "a.npz"]
    sorts: list[tuple[str, Path, str, Callable, list[str]]] = [
        (
            "picture",
            folder / f"a.{ending}",
            f"images/a.{ending}",
            apply.main,
            ["classify", "--run", str(run), "--images", "images", "--draws", "1", "--out", "figures.json", *on],
        )
        for ending in ("png", "jpg", "gif", "bmp", "webp")
    ]
    sorts += [("npz", folder / "a.npz", "a.npz", evaluate.main, [*fid, "--out", "figures.json", *on])] * 5
    drawing = ["--run", "run", "--rows", "1", *on]
    resume = [*TRAIN, *on, "--steps", "12", "--resume", "--out", "run"]
    sorts += [("safetensors", run / "model.safetensors", "run/model.safetensors", sample.main, drawing)] * 2
    sorts += [("safetensors", run / shard, f"run/{shard}", train.main, resume)] * 3
    for kind, source, name, main, arguments in sorts:
        for number in range(DAMAGED // 5):
            content = damaged(source.read_bytes(), generator)

            def prepare(folder: Path, name: str = name, content: bytes = content) -> None:
                if name.startswith("run/"):
                    shutil.copytree(run, folder / "run")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).unlink(missing_ok=True)
                (folder / name).write_bytes(content)

            yield Case(kind, f"{name} {number}", main, arguments, prepare)


def attempt(case: Case, folder: Path) -> tuple[str, str]:
    """Run a case in a child: its outcome in a word, and the last line it printed on standard error."""
    case.prepare(folder)
    child = os.fork()
    if child == 0:  # everything of the child ends here
        code = 70
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            os.chdir(folder)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
            cli.run(lambda: case.main(case.arguments))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 70
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    problems = (folder / "stderr").read_text(errors="replace")
    last = problems.strip().splitlines()[-1][:300] if problems.strip() else ""
    if code == -signal.SIGALRM:
        return "hang", last
    if "Traceback" in problems:
        return "traceback", last
    if code == 0:
        return ("accepted", "") if figures_are_numbers(folder) else ("wrong result", "figures.json")
    return {2: "refused", 1: "not foreseen"}.get(code, f"ended with {code}"), last


def figures_are_numbers(folder: Path) -> bool:
    """Whether the JSON file that a case may have written holds finite numbers alone."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    path = folder / "figures.json"
    try:
        if path.exists():
            json.loads(path.read_text(), parse_constant=refuse)
    except ValueError:
        return False
    return True


def main(argv: list[str] | None = None) -> None:
    config = cli.parse("benchmarks.fuzz", FuzzBenchmark(), "Try hostile flags, JSON fields and files.", argv)
    torch.set_num_threads(1)
    seed = config.seed or int(datetime.date.today().strftime("%Y%m%d"))
    print(f"seed {seed}", flush=True)
    generator, made = random.Random(seed), provenance(torch.device("cpu"))
    outcomes: dict[str, Counter[str]] = {}
    findings = []
    with tempfile.TemporaryDirectory() as root:
        home, run = Path(root), Path(root) / "trained"
        train.main([*TRAIN[:-4], "--steps", "10", "--checkpoint-every", "5", "--device", "cpu", "--out", str(run)])
        distill.main(["--run", str(run), *TRAIN[2:], "--device", "cpu"])
        cases = [*flag_cases(run), *json_cases(run), *file_cases(run, home, generator)]
        generator.shuffle(cases)
        for number, case in enumerate(cases[: config.cases]):
            folder = home / "a" / "b" / str(number)  # deep, so that ../../x stays inside
            folder.mkdir(parents=True)
            outcome, line = attempt(case, folder)
            outcomes.setdefault(case.kind, Counter())[outcome] += 1
            if outcome not in ("refused", "accepted"):
                findings.append({"kind": case.kind, "case": case.name, "outcome": outcome, "line": line})
                print(f"{outcome}: {case.name}: {line}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    total = sum(sum(counts.values()) for counts in outcomes.values())
    figures = {kind: dict(sorted(counts.items())) for kind, counts in sorted(outcomes.items())}
    record = {**made, **dataclasses.asdict(config), "seed": seed, "inputs": total, "outcomes": figures}
    write_json(ROOT / "results" / f"{config.out}.json", record | {"findings": findings})
    print(f"{total} inputs, {len(findings)} findings; {figures}")


if __name__ == "__main__":
    cli.run(main)
