"""FARMER in the page: parity with PyTorch, and every widget operated in a browser, from files, without a network."""

import gzip
import json
import math
import time

import chromium
import numpy as np
import pytest
import torch
from conftest import small_model

from book import live
from farmer_ref import Farmer, Guidance
from farmer_ref.support.errors import InputError

LIKELIHOODS = 100
SAMPLES = 20
SIZES = [(1280, False), (1280, True), (390, False), (390, True)]


@pytest.fixture(scope="module")
def browser():
    with chromium.running() as browser:
        yield browser
        assert browser.complaints == []


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    live.write(folder, "digits")
    return folder / "live.html"


def test_a_page_small_enough_to_mail_and_scripts_small_enough_to_read(page):
    assert page.stat().st_size < 4e6
    scripts = b"".join((live.STATIC / name).read_bytes() for name in live.SCRIPTS)
    assert len(gzip.compress(scripts)) < 25_000  # as a server sends them


def test_packing_moves_the_likelihood_little():
    loss = live.packing_loss("digits", Farmer.from_pretrained("digits"))
    assert loss.bits_per_dim < 0.005 and 0 < loss.worst_nats < 1


def test_a_model_that_the_page_cannot_draw_is_refused():
    with pytest.raises(InputError, match="dequantisation is 'gaussian'; allowed: uniform"):
        live.load("digits-noise")


# -- parity with PyTorch -----------------------------------------------------------------------------------------------


def open_library(browser, folder, model, student=None):
    """A page with the library and float32 weights; `models` there are one with the kernel and one without."""
    (folder / "weights.js").write_text(live.weights_script(model, student, "float32"))
    library = (live.STATIC / "farmer.js").read_text()
    start = "const models = [true, false].map(kernel => new (farmerLibrary().Farmer)(FARMER_WEIGHTS, kernel));"
    scripts = ['<script src="weights.js"></script>', f"<script>{library}{start}</script>"]
    (folder / "parity.html").write_text('<!doctype html><meta charset="utf-8">' + "".join(scripts))
    browser.open((folder / "parity.html").as_uri())


def in_browser(browser, expression, **given):
    names = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
    return browser.run(f"(() => {{{names} return {expression};}})()")


TERMS = "images.map((image, i) => { const t = models[kernel].likelihood(Float32Array.from(image), labels[i]); \
return [t.informative, t.redundant, t.logdet, t.perToken.reduce((a, b) => a + b)]; })"


@pytest.mark.parametrize("kernel", [0, 1], ids=["WebAssembly", "JavaScript"])
@torch.no_grad()
def test_likelihoods_equal_those_of_pytorch(browser, tmp_path, kernel):
    model, student = live.load("digits")
    open_library(browser, tmp_path, model, student)
    assert browser.run("models.map(model => model.kernel)") == [True, False]
    values, labels = (tensor[:LIKELIHOODS] for tensor in live.test_images("digits", model))
    images = live.middles(model, values)
    found = in_browser(browser, TERMS, images=images.flatten(1).tolist(), labels=labels.tolist(), kernel=kernel)
    terms = model.likelihood_terms(images, labels)
    expected = torch.stack([*terms, terms.total], 1)
    assert (torch.tensor(found) - expected).abs().max() < 1e-3


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


SAMPLE = "(() => { let at = 0; const way = models[0].sample(label, {scale}, () => numbers[at++]); \
return {image: way.image, student: way.student.at(-1), jacobi: way.sweeps.at(-1).at(-1)}; })()"


@torch.no_grad()
def test_samples_from_the_same_uniform_numbers_equal_those_of_pytorch(browser, tmp_path, monkeypatch):
    model, student = live.load("digits")
    open_library(browser, tmp_path, model, student)
    for number in range(SAMPLES):
        label, scale = number % 10, (0.0, 1.5)[number % 2]
        numbers = np.random.default_rng(number).random(4000).tolist()
        found = in_browser(browser, SAMPLE, label=label, scale=scale, numbers=numbers)
        uniforms = Uniforms(numbers)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "multinomial", uniforms.multinomial)
            patched.setattr(torch, "randn", uniforms.randn)
            z = model.prior.sample(torch.tensor([label]), Guidance(scale=scale))
        exact, guess = model.decode(z), model.decode(z, student=student)
        for name, expected in (("image", exact), ("jacobi", exact), ("student", guess)):
            assert (torch.tensor(found[name]) - expected.flatten()).abs().max() < 1e-3, (number, name)


VARIANTS = {
    "mixing, PCA, interleaved, three condition tokens": {
        **{"patch_basis": "pca", "channel_mixing": "learned", "informative_channels": "interleaved"},
        **{"condition_repeats": 3, "flow_sees_class": True},
    },
    "no split, odd blocks, prior in the flow's order": {
        **{"informative": None, "flow_blocks": 3, "final_permutation": False, "max_log_scale": None},
    },
    "normal redundant channels, other levels": {"redundant_prior": "normal", "levels": 256, "image_size": 12},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_every_kind_of_model_is_read_as_pytorch_reads_it(browser, tmp_path, changes):
    model = small_model(**changes)
    config = model.config
    shape = (4, config.channels, config.image_size, config.image_size)
    model.patchify.fit(torch.rand(shape, dtype=torch.float64) * 2 - 1)
    model = model.float()
    open_library(browser, tmp_path, model)
    images, labels = torch.rand(shape) * 2 - 1, torch.arange(4) - 1
    terms = model.likelihood_terms(images, labels)
    expected = torch.stack([*terms, terms.total], 1)
    for kernel in (0, 1):
        found = in_browser(browser, TERMS, images=images.flatten(1).tolist(), labels=labels.tolist(), kernel=kernel)
        # an untrained model's densities are thousands of nats: float32 has seven digits
        assert torch.allclose(torch.tensor(found), expected, rtol=2e-6, atol=1e-3)
    back = "images.map((image, i) => { const [z] = models[0].encode(Float32Array.from(image), labels[i]); \
    const way = models[0].race(z, labels[i]); return [way.image, way.sweeps.at(-1).at(-1)]; })"
    found = in_browser(browser, back, images=images.flatten(1).tolist(), labels=labels.tolist())
    assert (torch.tensor(found) - images.flatten(1)[:, None]).abs().max() < 1e-3


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


def drag(browser, start, *points):
    """Press the mouse at `start`, move it through `points`, let go."""
    mouse = {"button": "left", "buttons": 1, "clickCount": 1}
    browser.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **mouse)
    for x, y in points:
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **mouse)
    x, y = points[-1]
    browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, **mouse)


def key(browser, name, code=None):
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=name, code=code or name)


def focus(browser, selector):
    browser.run(f"document.querySelector({json.dumps(selector)}).focus()")


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}-{'dark' if size[1] else 'light'}")
def opened(request, browser, page):
    width, dark = request.param
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.call("Emulation.setEmulatedMedia", features=[scheme])
    browser.resize(width)
    browser.open(page.as_uri())
    yield browser
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []


def test_all_widgets_teach_before_they_are_touched(opened):
    for widget in live.WIDGETS:
        assert len(say(opened, widget)) > 20
        assert opened.run(f"document.querySelector('[data-farmer={widget}] .fl-foot a').href").startswith("https://")
    assert opened.run("performance.now()") < 10_000
    brightness = """["color", "backgroundColor"].map(name => {
        const colour = getComputedStyle(document.querySelector(".farmer-live"))[name];
        return colour.match(/\\d+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0); })"""
    text, paper = opened.run(brightness)
    assert abs(text - paper) > 450  # light on dark, or dark on light


def test_draw(opened):
    recorded = say(opened, "draw")
    press(opened, "draw", "The same, shifted")
    shifted = changed(opened, "draw", recorded)
    press(opened, "draw", f"A real {live.EXAMPLE}")
    changed(opened, "draw", shifted)
    assert say(opened, "draw") == recorded  # what PyTorch recorded is what the page computes
    press(opened, "draw", "A blank page")
    assert "empty page" in changed(opened, "draw", recorded)
    x, y, _, height = box(opened, "[data-farmer=draw] .fl-pad")
    before = say(opened, "draw")
    drag(opened, (x, y - height / 3), (x, y), (x, y + height / 3))
    stroke = changed(opened, "draw", before)
    press(opened, "draw", "Eraser")
    drag(opened, (x, y - height / 3), (x, y - height / 4))
    erased = changed(opened, "draw", stroke)
    focus(opened, "[data-farmer=draw] .fl-pad")
    for name in ("ArrowLeft", "ArrowLeft", "ArrowDown"):
        key(opened, name)
    key(opened, " ", "Space")
    assert "nats" in changed(opened, "draw", erased)


def test_sample_step_by_step(opened):
    end = say(opened, "sample")
    focus(opened, "[data-farmer=sample] .fl-scrub")
    key(opened, "Home")
    start = changed(opened, "sample", end)
    press(opened, "sample", "Step")
    assert changed(opened, "sample", start).startswith("Token 1 of 16")
    press(opened, "sample", "Play")
    until(opened, "/^Token [3-9]/.test(document.querySelector('[data-farmer=sample] .fl-say').textContent)")
    press(opened, "sample", "Pause")
    drawing = "document.querySelector('[data-farmer=sample] path').getAttribute('d')"
    before = opened.run(drawing)
    press(opened, "sample", "Another seed")
    until(opened, f"{drawing} !== {json.dumps(before)}")


def test_guidance_in_one_dimension(opened):
    before = say(opened, "guidance")
    x, y, *_ = box(opened, "[data-farmer=guidance] circle")
    drag(opened, (x, y), (x + 10, y + 20), (x + 20, y + 40))
    dragged = changed(opened, "guidance", before)
    focus(opened, "[data-farmer=guidance] circle")
    for _ in range(24):
        key(opened, "ArrowDown")  # wider, until the tails of p_c outgrow those of p_u
    assert opened.run("document.querySelector('[data-farmer=guidance] .fl-lamp').classList.contains('fl-on')")
    assert "without end" in changed(opened, "guidance", dragged)


def test_race_of_inverses(opened):
    middle = say(opened, "race")
    focus(opened, "[data-farmer=race] .fl-scrub")
    key(opened, "End")
    end = changed(opened, "race", middle)
    assert "60 passes" in end
    press(opened, "race", "Other latents")
    assert "student" in changed(opened, "race", end)


def test_mask(opened):
    causal = say(opened, "mask")
    press(opened, "mask", "Broken mask")
    broken = changed(opened, "mask", causal)
    assert "elsewhere" in broken
    press(opened, "mask", "Causal mask")
    assert changed(opened, "mask", broken) == causal


def test_change_of_variables(opened):
    before = say(opened, "volume")
    x, y, *_ = box(opened, "[data-farmer=volume] circle")
    drag(opened, (x, y), (x + 20, y), (x + 40, y))
    dragged = changed(opened, "volume", before)
    focus(opened, "[data-farmer=volume] circle")
    key(opened, "ArrowLeft")
    assert "Area" in changed(opened, "volume", dragged)
