"""Settings and JSON files: whatever stands in them, it is accepted, or refused in one line."""

import copy
import dataclasses
import json
import math
import random
import shutil
from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt

from farmer_ref import PRESETS, Farmer, Guidance, InputError, ModelConfig, OneStepStudent, TrainConfig, sample
from farmer_ref.distill import DistillConfig, distillation_settings
from farmer_ref.evaluation.results import Figures, read_result
from farmer_ref.evaluation.verdicts import report
from farmer_ref.support import cli
from farmer_ref.support.files import PRETRAINED, read_json, read_metrics
from farmer_ref.support.hub import push_run
from farmer_ref.support.plots import training_curve
from farmer_ref.support.record import ROOT
from farmer_ref.support.settings import Dropout, parse_json, settings_class
from farmer_ref.training.checkpoint import read_state
from farmer_ref.training.runs import Run, keep_metrics_until


@settings_class(known_as="inner")
class Inner:
    """Settings inside others."""

    rate: NonNegativeFloat = 0.5
    """A rate."""
    dropout: Dropout = 0.0
    """A dropout."""

    def __post_init__(self) -> None:
        if self.rate == 7:
            raise InputError("rate is 7; allowed: others")


@settings_class
class Outer:
    """Settings to test with."""

    inner: Inner = dataclasses.field(default_factory=Inner)
    """The inner ones."""
    count: Annotated[int, Field(gt=0, lt=10)] = 1
    """How many."""
    most: PositiveInt | None = None
    """At most."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    labels: tuple[int, ...] = ()
    """Labels."""
    name: str = ""
    """A name."""
    on: bool = False
    """Or off."""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{"count": 0}', "count is 0; allowed: 1 to 9"),
        ('{"count": "3"}', "count is '3'; allowed: a whole number, 1 to 9"),
        ('{"count": 3.5}', "count is 3.5; allowed: a whole number, 1 to 9"),
        ('{"count": true}', "count is True; allowed: a whole number, 1 to 9"),
        ('{"most": 0}', "most is 0; allowed: 1 or more"),
        ('{"most": []}', "most is []; allowed: a whole number, 1 or more, or None"),
        ('{"kind": "c"}', "kind is 'c'; allowed: a, b"),
        ('{"labels": [1, "2"]}', "labels[1] is '2'; allowed: a whole number"),
        ('{"labels": 1}', "labels is 1; allowed: a list [...]"),
        ('{"name": null}', "name is None; allowed: a text"),
        ('{"on": 1}', "on is 1; allowed: true or false"),
        ('{"inner": {"rate": -1}}', "inner.rate is -1; allowed: 0 or more"),
        ('{"inner": {"rate": NaN}}', "inner.rate is nan; allowed: a finite number, 0 or more"),
        ('{"inner": {"rate": 1e999}}', "inner.rate is inf; allowed: a finite number, 0 or more"),
        ('{"inner": {"dropout": 1}}', "inner.dropout is 1; allowed: 0 up to (not including) 1"),
        ('{"inner": {"rate": 7}}', "inner.rate is 7; allowed: others"),
        ('{"inner": {"wings\\n": 2}}', r"field is 'inner.wings\n'; allowed: rate, dropout"),
        ('{"inner": 3}', "inner is 3; allowed: an object {...}"),
        ("[]", "content is []; allowed: an object {...}"),
        ("{", "content is not JSON (EOF while parsing an object at line 1 column 1); allowed: JSON"),
    ],
)
def test_what_is_not_allowed_is_one_line(tmp_path, values, message):
    with pytest.raises(InputError) as raised:
        parse_json(Outer, values)
    assert str(raised.value) == message
    (tmp_path / "file.json").write_text(values)
    with pytest.raises(InputError) as raised:
        read_json(tmp_path / "file.json", Outer)
    assert str(raised.value) == f"{tmp_path / 'file.json'}: {message}"


def test_python_and_the_command_line_say_the_same():
    for make in (
        lambda: Outer(count=0),
        lambda: dataclasses.replace(Outer(), count=0),
        lambda: cli.parse("test", Outer(), "A test.", ["--count", "0"]),
    ):
        with pytest.raises(InputError, match="^count is 0; allowed: 1 to 9$"):
            make()
    for make in (lambda: Inner(rate=7.0), lambda: cli.parse("test", Outer(), "A test.", ["--inner.rate", "7"])):
        with pytest.raises(InputError, match="^inner.rate is 7; allowed: others$"):
            make()
    with pytest.raises(InputError, match="^argument 1 of settings is 3; allowed: values given by name$"):
        Outer(3)
    with pytest.raises(InputError, match="^field is 'wings'; allowed: inner, count, most, kind, labels, name, on$"):
        Outer(wings=2)
    with pytest.raises(InputError, match=r"^inner is {'rate': 1.0}; allowed: Inner\(...\)$"):
        Outer(inner={"rate": 1.0})
    with pytest.raises(InputError, match="^model is missing; allowed: an object {...}$"):
        TrainConfig()


def test_settings_are_frozen_dataclasses(capsys):
    made = cli.parse("test", Outer(), "A test.", ["--inner.rate", "2", "--labels", "1", "2", "--most", "3"])
    assert made == Outer(inner=Inner(rate=2), labels=(1, 2), most=3)
    assert type(made.inner.rate) is float and parse_json(Outer, json.dumps(dataclasses.asdict(made))) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.count = 2
    with pytest.raises(SystemExit):
        cli.parse("test", Outer(), "A test.", ["--help"])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("How many.", "A rate.", "{a,b}", "The inner ones.", "--most {None}|INT"))


# -- files that somebody has edited ------------------------------------------------------------------------------------

HOSTILE = [
    *(None, True, "3", "", "\ud83d\n", [], [1, "2"], {}, {"a": {"b": [None]}}, -1, 0, 1, 2.5),
    *(10**30, 10**400, -1e308, 1e308, 5e-324, math.nan, math.inf),
]


def places(value, path=()):
    """The paths of all that stands in a JSON value, itself included."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inside:
        yield from places(below, (*path, key))


def edited(value, path, change):
    """A copy of a JSON value with another one at a place; "missing" takes it away, "extra" adds a field beside it."""
    if not path:
        return change if change not in ("missing", "extra") else {}
    value = copy.deepcopy(value)
    *above, last = path
    holder = value
    for key in above:
        holder = holder[key]
    if change == "missing":
        del holder[last]
    elif change != "extra":
        holder[last] = change
    elif isinstance(holder, dict):
        holder["wings\n"] = 2
    else:
        holder.append(holder[last])
    return value


def edits(value, most=300):
    """A JSON value, edited in every place in every way; at most so many of these, the same each time."""
    ways = [(path, change) for path in places(value) for change in [*HOSTILE, "missing", "extra"]]
    for path, change in random.Random(0).sample(ways, min(most, len(ways))):
        yield edited(value, path, change)


def refused(load):
    """Whether a load is refused, and in one line; anything but that and success fails the test."""
    try:
        load()
    except InputError as error:
        message = str(error)
        assert "\n" not in message and "allowed: " in message, message
        return True
    return False


@pytest.fixture
def run(tmp_path):
    """A run folder as `train` and `distill` leave it, as far as JSON goes; its weights are the shipped ones."""
    folder = tmp_path / "run"
    shutil.copytree(PRETRAINED / "digits", folder)
    (folder / "distillation").mkdir()
    (folder / "distillation" / "config.json").write_text(json.dumps(dataclasses.asdict(DistillConfig())))
    (folder / "state.json").write_text(
        json.dumps({"step": 9, "seconds": 1.5, "skipped": 1, "skipped_in_a_row": 0, "files": 1})
    )
    (folder / "figures.json").write_text(
        json.dumps(dict.fromkeys(("bits_per_dim", "sample_accuracy", "frechet_distance"), 0.5) | {"run": "digits"})
    )
    return folder


FILES = {
    "config.json": Run.open,
    "distillation/config.json": lambda run: distillation_settings(run / "distillation"),
    "state.json": read_state,
    "figures.json": lambda run: read_json(run / "figures.json", Figures),
}


@pytest.mark.parametrize("name", FILES)
def test_an_edited_file_loads_or_is_refused_in_one_line(run, name):
    path = run / name
    value = json.loads(path.read_text())
    assert not refused(lambda: FILES[name](run))
    results = []
    for content in edits(value):
        path.write_text(json.dumps(content))
        results.append(refused(lambda: FILES[name](run)))
    assert 0.3 < sum(results) / len(results) < 1
    for damage in ("", "{", "[" * 100_000, '{"a": ' * 100_000, "\x00", "1" * 10_000):
        path.write_text(damage)
        assert refused(lambda: FILES[name](run))
    path.write_bytes(b'{"model": "\xff\xfe"}')
    assert refused(lambda: FILES[name](run))
    path.unlink()
    assert refused(lambda: FILES[name](run))


def test_a_model_of_other_sizes_than_its_weights_is_refused_before_it_takes_memory(run):
    """Every size, changed to a valid one that does not fit, up to those that no machine holds."""
    value = json.loads((run / "config.json").read_text())
    shapes = ("flow_width", "prior_width", "components", "image_size", "channels", "num_classes")
    for name in (*shapes, "condition_repeats", "redundant_components", "flow_blocks", "prior_layers", "informative"):
        for factor in (2, 2**20, 2**40, 2**70):
            content = edited(value, ("model", name), value["model"][name] * factor)
            (run / "config.json").write_text(json.dumps(content))
            assert refused(lambda: Farmer.from_pretrained(run)), (name, factor)
            if name.startswith(("flow", "image", "channels")):
                assert refused(lambda: OneStepStudent.from_pretrained(run)), (name, factor)


def test_metrics_that_a_kill_cut_off_are_read_and_damaged_ones_named(tmp_path):
    records = [{"step": 1, "loss": 0.5, "skipped": 0}, {"step": 2, "loss": None}, {"step": 3, "bits_per_dim": 1.5}]
    lines = [json.dumps(record) + "\n" for record in records]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(lines)[:-5])
    assert read_metrics(tmp_path) == records[:2]
    training_curve(tmp_path)
    keep_metrics_until(tmp_path, 1)
    assert path.read_text() == lines[0]
    for content in edits(records[0]):
        path.write_text(json.dumps(content) + "\n" + lines[1])
        if refused(lambda: read_metrics(tmp_path)):
            assert refused(lambda: keep_metrics_until(tmp_path, 1))
            assert refused(lambda: training_curve(tmp_path))
    path.write_text('{"step": 1, "loss": "3"}\n' + lines[1])
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1: loss is '3'; allowed: a finite number, or None"):
        read_metrics(tmp_path)


def test_a_note_of_samples_is_equal_or_refused(tmp_path):
    config = sample.SampleConfig(out=str(tmp_path / "out"))
    deciding = sample.images_depend_on(config, torch.device("cpu"))
    sample.note_settings(config, tmp_path / "out", deciding)
    (tmp_path / "out" / "000000_class0.png").touch()
    sample.note_settings(config, tmp_path / "out", deciding)
    for content in edits(deciding):
        (tmp_path / "out" / "samples.json").write_text(json.dumps(content))
        equal = isinstance(content, dict) and all(content.get(name) == value for name, value in deciding.items())
        assert refused(lambda: sample.note_settings(config, tmp_path / "out", deciding)) != equal


def test_a_result_file_is_reported_or_refused(tmp_path):
    for path in (ROOT / "results").glob("*.json"):
        if "sentences" in (value := json.loads(path.read_text())):
            assert read_result(path) == value
    value = json.loads((ROOT / "results" / "table4.json").read_text())
    value["rows"] = value["rows"][:1]
    for content in edits(value):
        (tmp_path / "table4.json").write_text(json.dumps(content))
        refused(lambda: report(tmp_path))


def test_a_folder_to_push_needs_what_its_card_says(run):
    for name in ("image_size", "channels", "num_classes"):
        value = json.loads((PRETRAINED / "digits" / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(edited(value, ("model", name), "3")))
        with pytest.raises(InputError, match=f"config.json: model.{name} is '3'; allowed: a whole number"):
            push_run(run, "owner/name")


# -- what a later version may change -----------------------------------------------------------------------------------


def test_a_field_that_a_later_version_added_takes_its_default(run):
    value = json.loads((run / "config.json").read_text())
    for later in ("guidance", "parallel"):
        del value["training"][later]
    (run / "config.json").write_text(json.dumps(value))
    assert Run.open(run).training.guidance == Guidance() and Run.open(run).training.parallel == "ddp"
    (run / "config.json").write_text(json.dumps(edited(value, ("model", "levels"), "extra")))
    with pytest.raises(InputError, match=r"config.json: field is 'model.wings\\n'; allowed: image_size"):
        Run.open(run)
    (run / "config.json").write_text(json.dumps(edited(value, ("training", "steps"), 0)))
    with pytest.raises(InputError, match=r"config.json: training.steps is 0; allowed: 1 or more"):
        Run.open(run)


def test_numbers_that_float32_does_not_hold_are_refused():
    model = PRESETS["tiny"].model
    for name, value in (("learning_rate", 1e308), ("weight_decay", math.inf), ("weight_decay", 1e6), ("seed", 2**64)):
        with pytest.raises(InputError, match=f"^{name} is "):
            TrainConfig(model=model, **{name: value})
    with pytest.raises(InputError, match="^model.noise_start is inf"):
        ModelConfig(noise_start=math.inf)
