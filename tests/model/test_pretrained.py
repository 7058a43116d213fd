"""Weights on disk: saved, loaded, and damaged ones named."""

import json

import pytest
import torch
from conftest import SPLITS, images_for, small_model

from farmer_ref import Farmer
from farmer_ref.support.errors import InputError


@pytest.mark.parametrize(
    "changes", [{}, {"patch_basis": "pca"}, *SPLITS, {"flow": "coupling"}, {"channel_mixing": "learned"}]
)
def test_save_and_load(tmp_path, changes):
    torch.manual_seed(0)
    model = small_model(**changes).float()
    model.patchify.fit(images_for(model, 50))
    model.save_pretrained(tmp_path / "model")
    loaded = Farmer.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded.log_prob(images_for(model).float()), model.log_prob(images_for(model).float()))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_damaged_weights_are_named(tmp_path):
    small_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        Farmer.from_pretrained(tmp_path)


def test_weights_of_another_model_are_named(tmp_path):
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["prior_width"] = 24
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="allowed: both of one model"):
        Farmer.from_pretrained(tmp_path)


def test_unknown_model_is_named():
    with pytest.raises(InputError, match="model is 'nothing'"):
        Farmer.from_pretrained("nothing")


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_type": "bert"}', '{"model": {"patch_size": "2"}}', "{"])
def test_a_foreign_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"config.json: (content|field|model)"):
        Farmer.from_pretrained(tmp_path)
