"""The transformer: attention as written out, causality, caches, dropout by image, recomputation. Float64."""

import math

import pytest
import torch
from conftest import jacobian

from farmer_ref.model.transformer import TokenDropout, TrainingPass, Transformer


def network(**changes):
    torch.manual_seed(0)
    return Transformer(2, 16, head_dim=8, **changes).double().eval()


def inputs(batch=3, length=6):
    return torch.randn(batch, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_written_out(causal):
    """Head by head, position by position; the MLP switched off."""
    layer, x = network(causal=causal).layers[0], inputs()
    torch.nn.init.zeros_(layer.mlp_out.weight)
    torch.nn.init.zeros_(layer.mlp_out.bias)
    query, keys, values = layer.attention_in(layer.attention_norm(x)).split(16, -1)
    attended = torch.zeros_like(x)
    for head in (slice(0, 8), slice(8, 16)):
        for i in range(6):
            seen = slice(0, i + 1 if causal else 6)
            scores = keys[:, seen, head] @ query[:, i, head, None] / math.sqrt(8)  # (B,T,1)
            attended[:, i, head] = (scores.softmax(1) * values[:, seen, head]).sum(1)
    assert torch.allclose(layer(x), x + layer.attention_out(attended), atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_an_output_depends_on_positions_up_to_its_own(causal):
    matrix = jacobian(network(causal=causal), inputs(1)).view(6, 16, 6, 16).abs().amax((1, 3))
    assert torch.equal(matrix > 0, torch.ones(6, 6).tril() > 0 if causal else torch.ones(6, 6) > 0)


@pytest.mark.parametrize("parts", [[1] * 6, [2, 1, 3], [6]])
def test_a_cache_changes_nothing(parts):
    transformer, x = network(), inputs()
    cache = transformer.new_cache(6)
    found = [transformer(part, cache) for part in x.split(parts, 1)]
    assert torch.allclose(torch.cat(found, 1), transformer(x), atol=1e-12)
    for layer in cache:
        layer.length = 2  # forget the last four
    assert torch.allclose(transformer(x[:, 2:], cache), transformer(x)[:, 2:], atol=1e-12)


def test_an_image_s_dropout_depends_on_its_place_in_the_step_s_batch_alone():
    dropout, x = TokenDropout(0.5), torch.ones(8, 5, 16)

    def drop(rows):
        torch.manual_seed(0)
        return dropout(x[rows], TrainingPass(rows, 8))

    whole = drop(torch.arange(8))
    assert torch.equal(drop(torch.tensor([5, 2])), whole[[5, 2]])
    assert set(whole.unique().tolist()) == {0.0, 2.0}
    assert (whole == whole[:, :1]).all() and not torch.equal(whole[0], whole[1])  # one mask for all tokens of an image
    assert torch.equal(dropout.eval()(x), x)


def test_recomputing_gives_the_same_gradients():
    transformer, x, gradients = network(dropout=0.2).train(), inputs(), []
    for recompute in (False, True):
        torch.manual_seed(0)
        output = transformer(x, training=TrainingPass(torch.arange(3), 3, recompute))
        gradients.append(torch.autograd.grad(output.square().sum(), list(transformer.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
