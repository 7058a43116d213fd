"""FARMER in the page: parity with PyTorch, and every widget operated in a browser, from files, without a network."""

import contextlib
import functools
import json
import math
import re
import time

import browsers
import nbformat
import numpy as np
import pytest
import torch
from conftest import small_model

from book import build, live
from farmer_ref import Guidance
from farmer_ref.support.errors import InputError

MODELS = live.shipped()  # the first one carries the page
LIKELIHOODS = {"webassembly": 100, "javascript": 5}  # plain JavaScript takes seconds for an image of 28x28
SAMPLES = 20
WALKS = [  # browser, width, dark: all four in the first one, and in the second both widths and both colours
    *(("chromium", width, dark) for dark in (False, True) for width in (1280, 390)),
    ("firefox", 1280, False),
    ("firefox", 390, True),
]


@pytest.fixture(scope="module")
def browser_of():
    """The browser of a kind, started when it is first asked for."""
    with contextlib.ExitStack() as stack:
        running = functools.cache(lambda kind: stack.enter_context(browsers.running(kind)))
        yield running


@pytest.fixture(scope="module", params=browsers.KINDS)
def browser(request, browser_of):
    browser = browser_of(request.param)
    yield browser
    assert browser.complaints == []


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    loss = live.write(folder, MODELS[0])
    assert loss.bits_per_dim < 0.005 and 0 < loss.worst_nats < 4
    return folder / "live.html"


def test_a_page_small_enough_to_mail_and_scripts_small_enough_to_read(page):
    assert page.stat().st_size < 4e6
    sizes = live.script_bytes()
    assert sizes["served"] == sum((page.parent / name).stat().st_size for name in live.SCRIPTS)
    assert sizes["written"] < 63_500 and sizes["served"] < 51_000 and sizes["gzip"] < 18_200


@pytest.mark.parametrize("function", live.WIDGETS.values(), ids=live.WIDGETS)
def test_the_same_in_pytorch_is_where_the_link_leads(function):
    source = live.source_of(function)
    path, line = source["address"].split("/blob/main/")[1].split("#L")
    lines = (live.ROOT / path).read_text(encoding="utf-8").splitlines()
    assert any(f"def {function.__name__}(" in text for text in lines[int(line) - 1 : int(line) + 2])


def test_comments_and_indentation_are_left_out_and_nothing_else():
    script = '// one\nconst a = "http://b"; // two\n  // three\n  if (a)\n    f(a);\n'
    assert live.without_comments(script) == 'const a = "http://b";\nif (a)\nf(a);\n'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dequantisation": "gaussian"}, "dequantisation is 'gaussian'; allowed: uniform"),
        ({"flow_sees_class": True, "channels": 1, "informative": 3}, "flow_sees_class is True; allowed: False"),
        ({"noise_width": 4, "channels": 1, "informative": 3}, "noise_width is 4; allowed: 0"),
        ({}, "channels is 2; allowed: 1"),
    ],
)
def test_a_model_that_the_page_cannot_draw_is_refused(tmp_path, changes, message):
    small_model(**changes).float().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        live.load(str(tmp_path))


def test_in_the_book_a_widget_takes_the_place_of_its_picture(tmp_path):
    picture = "[![Sample, step by step](../results/live_sample.png)](https://example.org) Operate it in the book."
    cells = [nbformat.v4.new_markdown_cell(f"## Sample\n\n{picture}\n\nMore."), nbformat.v4.new_code_cell("1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "00_tour.ipynb")
    build.write_notebook(tmp_path / "00_tour.ipynb", tmp_path / "made.ipynb")
    first, second, *_ = (cell.source for cell in nbformat.read(tmp_path / "made.ipynb", 4).cells)
    assert "live_sample.png" not in first and first.startswith("## Sample") and first.endswith("More.")
    assert second == "```{live} sample\n```"


def test_every_widget_of_a_notebook_has_a_picture():
    for headings in build.LIVE.values():
        for name in (name for names in headings.values() for name in names):
            assert (build.ROOT / "results" / f"live_{name}.png").is_file()


# -- parity with PyTorch -----------------------------------------------------------------------------------------------


def open_library(browser, folder, model, student=None):
    """A page with the library and float32 weights; `models` there are one with the kernel and one without."""
    weights = live.weights_script(model, "float32") + (live.student_script(student, "float32") if student else "")
    (folder / "weights.js").write_text(weights)
    library = (live.STATIC / "farmer.js").read_text()
    start = """const models = {webassembly: new (farmerLibrary().Farmer)(FARMER_WEIGHTS),
        javascript: new (farmerLibrary().Farmer)(FARMER_WEIGHTS, false)};"""
    scripts = ['<script src="weights.js"></script>', f"<script>{library}{start}</script>"]
    (folder / "parity.html").write_text('<!doctype html><meta charset="utf-8">' + "".join(scripts))
    browser.open((folder / "parity.html").as_uri())


def in_browser(browser, expression, **given):
    names = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
    return browser.run(f"(() => {{{names} return {expression};}})()")


TERMS = """images.map((image, i) => {
    const [t] = models[kind].likelihoods(Float32Array.from(image), [labels[i]]);
    return [t.informative, t.redundant, t.logdet, t.total, t.perToken.reduce((a, b) => a + b)];
})"""


def terms_of(model, images, labels):
    """The terms of log p, their sum, and the sum over the tokens (B,5)."""
    terms = model.likelihood_terms(images, labels)
    return torch.stack([*terms, terms.total, terms.total], 1)


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_likelihoods_equal_those_of_pytorch(browser, tmp_path, name, kind):
    model, _ = live.load(name)
    open_library(browser, tmp_path, model)
    assert browser.run("[models.webassembly.fast, models.javascript.fast]") == [True, False]
    values, labels = (tensor[: LIKELIHOODS[kind]] for tensor in live.test_images(name, model))
    images = live.middles(model, values)
    found = in_browser(browser, TERMS, images=images.flatten(1).tolist(), labels=labels.tolist(), kind=kind)
    error = (torch.tensor(found, dtype=torch.float64) - terms_of(model.double(), images.double(), labels)).abs()
    assert error.max() < 1e-3


class Uniforms:
    """`torch.multinomial` and `torch.randn` from a list of uniform numbers, by the transforms that farmer.js uses."""

    def __init__(self, numbers):
        self.numbers = iter(numbers)

    def multinomial(self, weights, count, **_):
        rows = weights.double().cumsum(-1)
        found = [[min(int((row <= next(self.numbers)).sum()), len(row) - 1) for _ in range(count)] for row in rows]
        return torch.tensor(found)

    def randn(self, shape, **_):
        draws = [(next(self.numbers), next(self.numbers)) for _ in range(math.prod(shape))]
        normal = [math.sqrt(-2 * math.log(1 - a)) * math.cos(2 * math.pi * b) for a, b in draws]
        return torch.tensor(normal, dtype=torch.float32).view(shape)


SAMPLE = """(() => {
    let at = 0;
    const model = models.webassembly, way = model.sample(label, {scale}, () => numbers[at++]);
    const ends = [way.levels.at(-1), way.sweeps.at(-1).at(-1), ...way.student.slice(-1)];
    return ends.map(x => [...model.pixels.inverse(x)]);
})()"""


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_samples_from_the_same_uniform_numbers_equal_those_of_pytorch(browser, tmp_path, monkeypatch, name):
    model, student = live.load(name)
    open_library(browser, tmp_path, model, student)
    found, latents = [], []
    for number in range(SAMPLES):
        label, scale = number % 10, (0.0, 1.5)[number % 2]
        numbers = np.random.default_rng(number).random(20_000).tolist()
        found.append(in_browser(browser, SAMPLE, label=label, scale=scale, numbers=numbers))
        uniforms = Uniforms(numbers)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "multinomial", uniforms.multinomial)
            patched.setattr(torch, "randn", uniforms.randn)
            latents.append(model.prior.sample(torch.tensor([label]), Guidance(scale=scale)))
    z = torch.cat(latents)
    exact, guess = model.decode(z), model.decode(z, student=student) if student else None
    for images, expected in zip(zip(*found, strict=True), (exact, exact, guess), strict=False):
        assert (torch.tensor(images) - expected.flatten(1)).abs().max() < 1e-3


VARIANTS = {
    "mixing, PCA, interleaved, three condition tokens": {
        **{"patch_basis": "pca", "channel_mixing": "learned", "informative_channels": "interleaved"},
        **{"condition_repeats": 3, "informative": 3},
    },
    "no split, odd blocks, prior in the flow's order": {
        **{"informative": None, "flow_blocks": 3, "final_permutation": False, "max_log_scale": None},
    },
    "normal redundant channels, other levels": {
        **{"redundant_prior": "normal", "levels": 256, "image_size": 12, "informative": 3},
    },
    "histogram, mixing, 28x28": {
        **{"pixels": "histogram", "channel_mixing": "learned", "levels": 256, "image_size": 28, "patch_size": 4},
        **{"informative": 8},
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_every_kind_of_model_is_read_as_pytorch_reads_it(browser, tmp_path, changes):
    model = small_model(channels=1, **changes)
    config = model.config
    values = torch.randint(config.levels, (4, 1, config.image_size, config.image_size))
    values[..., ::2] //= 7  # most of them dark, as in real images
    model.pixels.fit(values)
    images = model.dequantiser(values, torch.rand(values.shape))
    model.patchify.fit(model.pixels(images)[0].double())
    model, labels = model.float(), torch.arange(4) - 1
    open_library(browser, tmp_path, model)
    for kind in LIKELIHOODS:
        found = in_browser(browser, TERMS, images=images.flatten(1).tolist(), labels=labels.tolist(), kind=kind)
        # an untrained model's densities are thousands of nats: float32 has seven digits
        assert torch.allclose(torch.tensor(found), terms_of(model, images, labels), rtol=2e-6, atol=1e-3)
    back = """images.map(image => {
        const model = models.webassembly, way = model.race(model.encode(Float32Array.from(image))[0]);
        return [way.levels.at(-1), way.sweeps.at(-1).at(-1)].map(x => [...model.pixels.inverse(x)]);
    })"""
    found = in_browser(browser, back, images=images.flatten(1).tolist())
    assert (torch.tensor(found) - images.flatten(1)[:, None]).abs().max() < 1e-3


@torch.no_grad()
def test_the_page_computes_with_the_weights_as_they_were_packed(browser, page):
    model, _ = live.load(MODELS[0])
    values, labels = (tensor[:1] for tensor in live.test_images(MODELS[0], model))
    image = live.middles(model, values)
    browser.open(page.as_uri())
    total = "new (farmerLibrary().Farmer)(FARMER_WEIGHTS).likelihoods(Float32Array.from(image), [label])[0].total"
    found = in_browser(browser, total, image=image.flatten().tolist(), label=int(labels[0]))
    assert abs(found - float(live.as_packed(model).log_prob(image, labels))) < 0.01


# -- the widgets -------------------------------------------------------------------------------------------------------


def say(browser, widget):
    return browser.run(f"document.querySelector('[data-farmer={widget}] .fl-say').textContent")


def until(browser, condition, seconds=30):
    """Wait until an expression on the page is true."""
    end = time.monotonic() + seconds
    while not browser.run(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.03)


def changed(browser, widget, before, seconds=30):
    """The live region's text once it is another than `before`."""
    path = f"document.querySelector('[data-farmer={widget}] .fl-say').textContent"
    until(browser, f"{path} !== {json.dumps(before)}", seconds)
    return say(browser, widget)


def press(browser, widget, text):
    """Click the button with this text."""
    buttons = f"[...document.querySelectorAll('[data-farmer={widget}] button')]"
    browser.run(f"{buttons}.find(one => one.textContent === {json.dumps(text)}).click()")


def box(browser, selector):
    """The middle and the size of an element, scrolled into view."""
    return browser.run(f"""(() => {{ const node = document.querySelector({json.dumps(selector)});
        node.scrollIntoView({{block: "center", behavior: "instant"}}); const b = node.getBoundingClientRect();
        return [b.left + b.width / 2, b.top + b.height / 2, b.width, b.height]; }})()""")


def focus(browser, selector):
    browser.run(f"document.querySelector({json.dumps(selector)}).focus()")


@pytest.fixture(scope="module", params=WALKS, ids=lambda w: f"{w[0]}-{w[1]}-{'dark' if w[2] else 'light'}")
def opened(request, browser_of, page):
    kind, width, dark = request.param
    browser = browser_of(kind)
    browser.prefer(dark=dark)
    browser.resize(width)
    browser.open(page.as_uri())
    assert browser.run("performance.now()") < 10_000
    yield browser
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []


def test_all_widgets_teach_before_they_are_touched(opened):
    for widget in live.WIDGETS:
        assert len(say(opened, widget)) > 20
        assert opened.run(f"document.querySelector('[data-farmer={widget}] .fl-foot a').href").startswith("https://")
    brightness = """["color", "backgroundColor"].map(name => {
        const colour = getComputedStyle(document.querySelector(".farmer-live"))[name];
        return colour.match(/\\d+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0); })"""
    text, paper = opened.run(brightness)
    assert abs(text - paper) > 450  # light on dark, or dark on light


def test_draw(opened):
    recorded = say(opened, "draw")
    opened.press_and_wait("document.querySelector('[data-farmer=draw]')", "A real digit")  # the model loads
    before = changed(opened, "draw", recorded)
    for _ in range(9):  # through all other digits, back to the first
        press(opened, "draw", "A real digit")
        before = changed(opened, "draw", before)
    figures = [re.findall(r"\d+\.?\d*", text.replace("−", "-")) for text in (before, recorded)]
    assert all(abs(float(a) - float(b)) <= 1.01 for a, b in zip(*figures, strict=True))  # PyTorch's, and the page's
    press(opened, "draw", "Shift it")
    shifted = changed(opened, "draw", before)
    press(opened, "draw", "A blank page")
    assert "empty page" in changed(opened, "draw", shifted)
    x, y, _, height = box(opened, "[data-farmer=draw] canvas")
    before = say(opened, "draw")
    opened.drag((x, y - height / 3), (x, y), (x, y + height / 3))
    stroke = changed(opened, "draw", before)
    press(opened, "draw", "Eraser")
    opened.drag((x, y - height / 3), (x, y - height / 4))
    erased = changed(opened, "draw", stroke)
    focus(opened, "[data-farmer=draw] canvas")
    for name in ("ArrowLeft", "ArrowLeft", "ArrowDown"):
        opened.key(name)
    assert opened.run("!document.querySelector('[data-farmer=draw] .fl-mark').hidden")
    opened.key(" ")
    assert "nats" in changed(opened, "draw", erased)


def test_sample_step_by_step(opened):
    end = say(opened, "sample")
    focus(opened, "[data-farmer=sample] .fl-scrub")
    opened.key("Home")
    start = changed(opened, "sample", end)
    press(opened, "sample", "Step")
    assert re.match(r"Token 1 of \d+:", changed(opened, "sample", start))
    press(opened, "sample", "Play")
    until(opened, "/^Token [3-9]/.test(document.querySelector('[data-farmer=sample] .fl-say').textContent)")
    press(opened, "sample", "Pause")
    drawing = "document.querySelectorAll('[data-farmer=sample] path')[1].getAttribute('d')"
    before = opened.run(drawing)
    press(opened, "sample", "Another seed")
    until(opened, f"{drawing} !== {json.dumps(before)}")


def test_guidance_in_one_dimension(opened):
    before = say(opened, "guidance")
    x, y, *_ = box(opened, "[data-farmer=guidance] circle")
    opened.drag((x, y), (x + 10, y + 20), (x + 20, y + 40))
    dragged = changed(opened, "guidance", before)
    focus(opened, "[data-farmer=guidance] circle")
    for _ in range(24):
        opened.key("ArrowDown")  # wider, until the tails of p_c outgrow those of p_u
    assert opened.run("document.querySelector('[data-farmer=guidance] .fl-lamp').classList.contains('fl-on')")
    assert "without end" in changed(opened, "guidance", dragged)


def test_race_of_inverses(opened):
    middle = say(opened, "race")
    focus(opened, "[data-farmer=race] .fl-scrub")
    opened.key("End")
    end = changed(opened, "race", middle)
    assert "sequential inverse took" in end
    press(opened, "race", "Other latents")
    assert changed(opened, "race", end)


def test_mask(opened):
    causal = say(opened, "mask")
    press(opened, "mask", "Broken mask")
    broken = changed(opened, "mask", causal)
    assert abs(float(re.search(r"\d\.\d\d", broken)[0]) - 1) > 0.1  # the integral, no longer 1
    press(opened, "mask", "Causal mask")
    assert changed(opened, "mask", broken) == causal


def test_change_of_variables(opened):
    before = say(opened, "volume")
    x, y, *_ = box(opened, "[data-farmer=volume] circle")
    opened.drag((x, y), (x + 20, y), (x + 40, y))
    dragged = changed(opened, "volume", before)
    focus(opened, "[data-farmer=volume] circle")
    opened.key("ArrowLeft")
    assert "Area" in changed(opened, "volume", dragged)
