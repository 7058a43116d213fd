"""Files on disk: replaced as a whole or not at all, and damaged ones named."""

import pytest
import torch

from farmer_ref import InputError
from farmer_ref.support.files import read_weights, replace_file, write_json, write_weights


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()

    def fails_midway(temporary):
        temporary.write_text("{")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"config\.json cannot be written .*No space left"):
        replace_file(path, fails_midway)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_weights_come_back_as_they_were(tmp_path):
    """Views, and two names of one tensor, which safetensors does not take by itself."""
    matrix = torch.randn(3, 4)
    weights = {"matrix": matrix, "same": matrix, "transposed": matrix.T, "number": torch.tensor(2)}
    write_weights(tmp_path / "w.safetensors", weights)
    found = read_weights(tmp_path / "w.safetensors")
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("kept", [0, 5, -1, None])
def test_weights_that_are_cut_off_or_missing_are_named(tmp_path, kept):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.zeros(100)})
    whole = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(whole[:kept])
    with pytest.raises(
        InputError, match=r"w\.safetensors cannot be read .*; allowed: a whole safetensors file"
    ) as info:
        read_weights(path)
    assert "\n" not in str(info.value)
