"""Files on disk: replaced as a whole or not at all, and damaged ones named."""

import contextlib

import pytest
import torch
from safetensors.torch import save_file

from farmer_ref import InputError
from farmer_ref.support.files import (
    CHECKSUM,
    PRETRAINED,
    read_metadata,
    read_weights,
    replace_file,
    write_json,
    write_weights,
)


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


def test_any_flipped_bit_is_noticed(tmp_path):
    """In values, names, types, shapes and metadata; only the checksum's own name may change, and then there is none."""
    path = tmp_path / "w.safetensors"
    weights = {
        "a": torch.arange(3.0),
        "b": torch.tensor(True),
        "empty": torch.zeros(0),
        "half": torch.ones(2).bfloat16(),
    }
    write_weights(path, weights, {"form": "inverse"})
    assert read_weights(path).keys() == weights.keys() and read_metadata(path)["form"] == "inverse"
    whole = path.read_bytes()
    name = whole.index(b"sha256")
    unnoticed = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            read_weights(path)
            unnoticed.append(place)
    assert set(unnoticed) <= set(range(name, name + len("sha256"))) | spaces_of(whole)


def spaces_of(file):
    """The places of the spaces that fill up the header of a safetensors file."""
    end = 8 + int.from_bytes(file[:8], "little")
    return set(range(len(file[:end].rstrip()), end))


@pytest.mark.parametrize("path", sorted(PRETRAINED.rglob("*.safetensors")), ids=lambda path: path.parent.name)
def test_a_flipped_bit_of_a_shipped_file_is_noticed(tmp_path, path):
    assert read_weights(path) and CHECKSUM in read_metadata(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    (tmp_path / path.name).write_bytes(content)
    with pytest.raises(InputError, match="has changed since it was written"):
        read_weights(tmp_path / path.name)


def test_a_file_without_a_checksum_is_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", {"format": "pt"})
    assert read_weights(tmp_path / "w.safetensors").keys() == {"a"}


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
