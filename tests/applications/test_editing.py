"""Edits keep what they say, and walks begin and end at the images."""

import pytest
import torch
from conftest import small_model

from farmer_ref import Guidance, InputError
from farmer_ref.applications.editing import change_class, change_details, interpolate


def test_edits_keep_what_they_say():
    model = small_model()
    images = torch.rand(4, 2, 6, 6, dtype=torch.float64) * 2 - 1
    labels = torch.tensor([0, 1, 2, 0])
    generator = torch.Generator().manual_seed(0)
    informative, redundant = model.prior.split(model.encode(images)[0])
    edited = model.prior.split(
        model.encode(change_class(model, images, labels, labels.flip(0), generator=generator))[0]
    )
    assert torch.allclose(edited[1], redundant) and not torch.allclose(edited[0], informative)
    edited = model.prior.split(model.encode(change_details(model, images, labels, generator=generator))[0])
    assert torch.allclose(edited[0], informative) and not torch.allclose(edited[1], redundant)
    with pytest.raises(InputError, match="informative is None; allowed: a model with redundant channels"):
        change_class(small_model(informative=None), images, labels, labels)
    for wrong, message in (
        (labels + 1, "label is 3; allowed: 0 to 2, or -1"),
        (labels[:2], "2 labels; allowed: 4"),
    ):
        with pytest.raises(InputError, match=message):
            change_class(model, images, labels, wrong)


@pytest.mark.parametrize("sees", [False, True])
def test_edits_are_drawn_under_the_labels_and_the_guidance_that_are_asked_for(sees):
    model = small_model(flow_sees_class=sees)
    images = torch.rand(4, 2, 6, 6, dtype=torch.float64) * 2 - 1
    labels, new, guidance = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2]), Guidance(scale=1.0)
    first, again = (torch.Generator().manual_seed(0) for _ in range(2))
    edited = change_class(model, images, labels, new, guidance=guidance, generator=first)
    wanted, _ = model.prior.split(model.prior.sample(new, guidance, generator=again))
    assert torch.allclose(model.prior.split(model.encode(edited, new)[0])[0], wanted)
    edited = change_details(model, images, labels, generator=first.manual_seed(0))
    informative, _ = model.prior.split(model.encode(images, labels)[0])
    wanted = model.prior.sample_redundant(informative, labels, generator=again.manual_seed(0))
    assert torch.allclose(model.prior.split(model.encode(edited, labels)[0])[1], wanted)


def test_walks_begin_and_end_at_the_images():
    model = small_model()
    first, second = torch.rand(2, 3, 2, 6, 6, dtype=torch.float64) * 2 - 1
    for latent in (True, False):
        walk = interpolate(model, first, second, steps=5, latent=latent)
        assert torch.allclose(walk[:, 0], first) and torch.allclose(walk[:, -1], second)
    assert torch.allclose(walk[:, 2], (first + second) / 2)
    middle = interpolate(model, first, second, steps=5)[:, 2]
    ends = model.encode(first)[0], model.encode(second)[0]
    assert torch.allclose(model.encode(middle)[0], (ends[0] + ends[1]) / 2)
