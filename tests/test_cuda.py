"""The same on a GPU: skipped where there is none."""

import pytest
import torch
from conftest import small_model
from test_engine import QUICK

from farmer_ref import Farmer, train
from farmer_ref.engine import load_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_likelihood_and_inverse_equal_the_cpu_s():
    model = small_model(channel_mixing="learned")
    x = torch.rand(4, 2, 6, 6, dtype=torch.float64) * 2 - 1
    labels = torch.tensor([0, 1, 2, -1])
    wanted = model.log_prob(x, labels)
    model.cuda()
    assert torch.allclose(model.log_prob(x.cuda(), labels.cuda()).cpu(), wanted, atol=1e-8)
    z, _ = model.encode(x.cuda())
    assert torch.allclose(model.decode(z).cpu(), x, atol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [[], ["--model.patch-basis", "pca", "--model.channel-mixing", "learned"]])
def test_train_and_sample(tmp_path, precision, changes):
    arguments = [argument if argument != "cpu" else "cuda" for argument in QUICK]
    train.main([*arguments, *changes, "--precision", precision, "--out", str(tmp_path)])
    model = load_run(str(tmp_path)).cuda()
    images = model.sample(torch.arange(10, device="cuda"), generator=torch.Generator("cuda").manual_seed(0))
    assert torch.isfinite(images).all()


def test_shipped_weights_score_the_same_on_both_devices():
    cpu = Farmer.from_pretrained("digits")
    images = cpu.sample(torch.arange(10), generator=torch.Generator().manual_seed(0))
    wanted = cpu.log_prob(images, torch.arange(10))
    gpu = cpu.cuda().log_prob(images.cuda(), torch.arange(10, device="cuda"))
    assert torch.allclose(gpu.cpu(), wanted, atol=0.05)
