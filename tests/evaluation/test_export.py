"""Graphs without Python: programs of torch.export and ONNX files, for any batch, against the model itself."""

import importlib.util

import onnx
import onnxruntime
import pytest
import torch
from conftest import small_model

from farmer_ref.model import export
from farmer_ref.model.export import OPSET, export_onnx, exported, graphs
from farmer_ref.model.mixture import GaussianMixture
from farmer_ref.support.errors import InputError

SMALLER = {"flow_blocks": 2, "prior_layers": 1}
MODELS = {
    "plain": {**SMALLER, "patch_basis": "dct"},
    "labels, mixing, reversed": {"flow_sees_class": True, "channel_mixing": "learned", "flow_blocks": 1},
    "no labels, no split": {**SMALLER, "num_classes": 0, "informative": None},
    "coupling, normal": {**SMALLER, "flow": "coupling", "redundant_prior": "normal"},
}
BATCHES = (1, 3, 7)


def inputs_of(graph, batch, classes, seed=0):
    """Random inputs of a graph: a batch of any size, at a position with others before it."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, (example, dim) in graph.inputs.items():
        shape = [batch if place == dim else size for place, size in enumerate(example.shape)]
        if name == "labels":
            made[name] = torch.randint(-1, classes, shape, generator=generator)
        elif name == "position":
            made[name] = torch.tensor([4])
        else:
            made[name] = torch.rand(shape, generator=generator, dtype=example.dtype) * 2 - 1
    return made


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_programs_equal_the_model(changes):
    dtype = torch.float32 if "patch_basis" in changes else torch.float64
    model = small_model(**changes).to(dtype)
    found = graphs(model)
    steps = [] if model.config.flow == "coupling" else [f"flow_step_{t + 1}" for t in range(model.config.flow_blocks)]
    redundant = ["prior_redundant"] * (model.config.informative is not None)
    assert list(found) == ["likelihood", "prior_step", *redundant, *steps]
    for graph in found.values():
        program = exported(graph).module()
        for batch in BATCHES:
            inputs = inputs_of(graph, batch, model.config.num_classes)
            with torch.no_grad():
                wanted, outputs = graph.module(**inputs), program(**inputs)
            for a, b in zip(outputs, wanted, strict=True):
                assert a.dtype == dtype and torch.allclose(a, b, rtol=1e-5 if dtype == torch.float32 else 1e-12)
    assert not model.training


def test_a_program_has_no_dropout_and_the_model_keeps_its_mode():
    model = small_model(**SMALLER, dropout=0.5).train()
    graph = graphs(model)["likelihood"]
    inputs = inputs_of(graph, 3, 3)
    program = exported(graph).module()
    assert model.training and model.flow.blocks[0].transformer.layers[0].training
    assert torch.equal(program(**inputs)[0], model.eval()(**inputs).informative)
    assert not graphs(model)["flow_step_2"].module.training and not model.training


def steps_through(program, graph, sequence, **fixed):
    """The outputs of a step at each position in turn; `sequence` gives each position's inputs."""
    batch = next(iter(sequence[0].values())).shape[0]
    cache = {
        name: torch.zeros_like(graph.inputs[name][0][:, :1]).repeat(1, batch, 1, 1, 1) for name in ("keys", "values")
    }
    for position, inputs in enumerate(sequence):
        *outputs, cache["keys"], cache["values"] = program(
            **inputs, **fixed, position=torch.tensor([position]), **cache
        )
        yield outputs


@pytest.mark.parametrize("changes", [MODELS["plain"], MODELS["labels, mixing, reversed"]])
def test_steps_alone_invert_the_flow_and_give_the_density_of_the_prior(changes):
    model = small_model(**changes)
    labels, found = torch.tensor([0, 2, -1]), graphs(model)
    z = torch.randn(3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = z
        for t, block in reversed(list(enumerate(model.flow.blocks, 1))):
            graph, x = found[f"flow_step_{t}"], block.flip_if_reversed(x)
            program, done = exported(graph).module(), [{"x": x[:, 0]}]
            for shift, log_scale in steps_through(program, graph, done, labels=labels):
                if len(done) < 9:
                    done.append({"x": x[:, len(done)] * torch.exp(-log_scale) + shift})
            x = block.flip_if_reversed(torch.stack([token["x"] for token in done], 1))
            x = x if block.mixing is None else block.mixing.inverse(x)
        assert torch.allclose(x, model.flow.inverse(z, labels), atol=1e-12)

        prior, graph = model.prior, found["prior_step"]
        informative, redundant = prior.split(prior.flip_if_reversed(z))
        tokens = [{"z": torch.zeros(3, 5, dtype=torch.float64)}] * 2 + [{"z": token} for token in informative.unbind(1)]
        outputs = list(steps_through(exported(graph).module(), graph, tokens, labels=labels))
        log_p = sum(
            GaussianMixture(*mixture).log_prob(token)
            for (_, *mixture), token in zip(outputs[1:-1], informative.unbind(1), strict=True)
        )
        shared = GaussianMixture(*exported(found["prior_redundant"]).module()(hidden=outputs[-1][0]))
        wanted = prior.log_prob_parts(z, labels)
        assert torch.allclose(log_p, wanted.informative, atol=1e-12)
        assert torch.allclose(shared.unsqueeze().log_prob(redundant).sum(1), wanted.redundant, atol=1e-12)


@pytest.mark.parametrize(("pixels", "noise_width"), [("linear", 0), ("histogram", 0), ("histogram", 4)])
def test_onnx_files_equal_the_model(tmp_path, pixels, noise_width):
    model = small_model(flow_blocks=1, channel_mixing="learned", pixels=pixels, noise_width=noise_width).float()
    if pixels == "histogram":
        with pytest.raises(InputError, match="not fitted"):
            graphs(model)
        model.pixels.fit(torch.randint(model.config.levels, (20, 2, 6, 6)))
    paths = export_onnx(model, tmp_path)
    layers = {"likelihood": 3, "prior_step": 2, "prior_redundant": 0, "flow_step_1": 1}
    assert [path.stem for path in paths] == list(layers) == list(graphs(model))
    for path, graph in zip(paths, graphs(model).values(), strict=True):
        written = onnx.load(path)
        onnx.checker.check_model(written, full_check=True)
        assert [(entry.domain, entry.version) for entry in written.opset_import] == [("", OPSET)]
        assert sum(node.op_type == "Attention" for node in written.graph.node) == layers[path.stem]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        shapes = {given.name: given.shape for given in session.get_inputs()}
        assert {name: shape.index("batch") if "batch" in shape else None for name, shape in shapes.items()} == {
            name: dim for name, (_, dim) in graph.inputs.items()
        }
        for batch in BATCHES:
            inputs = inputs_of(graph, batch, 3)
            with torch.no_grad():
                wanted = graph.module(**inputs)
            outputs = session.run(list(graph.outputs), {name: value.numpy() for name, value in inputs.items()})
            for a, b in zip(outputs, wanted, strict=True):
                assert torch.allclose(torch.from_numpy(a), b, rtol=1e-4, atol=1e-4)


def test_a_fitted_basis_is_exported_and_an_unfitted_one_refused(tmp_path):
    model = small_model(**SMALLER, patch_basis="pca")
    with pytest.raises(InputError, match="patch_basis is 'pca' and not fitted"):
        graphs(model)
    images = torch.rand(20, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model.patchify.fit(images)
    program = exported(graphs(model)["likelihood"]).module()
    labels = torch.zeros(20, dtype=torch.long)
    assert torch.allclose(program(images=images, labels=labels)[0], model(images, labels).informative, rtol=1e-12)


def test_without_onnx_one_line_says_what_to_install(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(InputError, match=r'onnxscript is not installed; allowed: pip install "farmer-ref\[export\]"'):
        export_onnx(small_model(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
