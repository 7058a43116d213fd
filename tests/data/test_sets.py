"""Named data sets and their splits."""

import gzip
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from farmer_ref import PRESETS, InputError, ModelConfig
from farmer_ref.data.folders import SPLITS
from farmer_ref.data.sets import load_split

DIGITS = PRESETS["digits"].model


def test_digits_splits():
    splits = {split: load_split("digits", split, DIGITS) for split in SPLITS}
    assert [len(data) for data in splits.values()] == [1397, 100, 300]
    for data in splits.values():
        assert data.values.dtype == torch.uint8
        assert data.values.max() <= 16
        assert (torch.bincount(data.labels, minlength=10) >= 9).all()  # stratified
    images = [set(map(bytes, data.values.flatten(1).numpy())) for data in splits.values()]
    assert not images[0] & images[1]
    assert not images[0] & images[2]
    assert not images[1] & images[2]


def test_digits_without_a_class():
    for split in SPLITS:
        whole, rest = (load_split(name, split, DIGITS) for name in ("digits", "digits-without-3"))
        assert torch.equal(rest.values, whole.values[whole.labels != 3])
        assert rest.labels.unique().tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9] and rest.num_classes == 10


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(path.read_bytes())


def test_mnist_in_the_publisher_s_format(tmp_path):
    """Files in MNIST's own format, made here: 5,100 training and 20 test images."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    for part, size in (("train", 5100), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (size, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", rng.integers(0, 10, size, dtype=np.uint8))
    model = PRESETS["mnist"].model
    splits = {split: load_split("mnist", split, model, data_root=str(tmp_path), download=False) for split in SPLITS}
    assert [len(data) for data in splits.values()] == [100, 5000, 20]
    assert splits["train"].values.shape == (100, 1, 28, 28)
    again = load_split("mnist", "train", model, data_root=str(tmp_path), download=False)
    assert torch.equal(again.values, splits["train"].values)


def test_some_images_of_mnist_ship_with_the_package():
    splits = {split: load_split("mnist-small", split, PRESETS["mnist"].model) for split in SPLITS}
    assert [len(data) for data in splits.values()] == [100, 100, 300]
    for data in splits.values():
        assert data.values.shape[1:] == (1, 28, 28) and data.values.dtype == torch.uint8
        assert torch.equal(data.labels.bincount(), torch.full((10,), len(data) // 10))
        assert 0.75 < (data.values == 0).double().mean() < 0.85 and data.values.max() == 255
    images = {image.numpy().tobytes() for data in splits.values() for image in data.values}
    assert len(images) == 500  # no split shares an image with another


def test_missing_data_is_named(tmp_path):
    with pytest.raises(InputError, match="data_root is .* which holds no complete cifar10") as raised:
        load_split("cifar10", "test", PRESETS["cifar10"].model, data_root=str(tmp_path), download=False)
    assert "\n" not in str(raised.value)


def test_cifar10_in_the_publisher_s_format_and_its_crops(tmp_path):
    """The Python version's pickled batches, as torchvision reads them once their checksums are right."""
    values = np.arange(3 * 32 * 32, dtype=np.int64).astype(np.uint8).reshape(1, 3, 32, 32)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": np.repeat(values, 1200, 0).reshape(1200, -1), "labels": [3] * 1200}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda _: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        whole = load_split("cifar10", "train", PRESETS["cifar10"].model, data_root=str(tmp_path), download=False)
        crops = load_split(
            "cifar10-crops", "train", PRESETS["cifar10-crops"].model, data_root=str(tmp_path), download=False
        )
    assert len(whole) == len(crops) == 1000
    assert torch.equal(whole[0][0], torch.from_numpy(values[0]))
    assert torch.equal(crops[0][0], torch.from_numpy(values[0, :, 8:24, 8:24]))
    assert crops[0][1] == 3


def test_truncated_mnist_is_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.zeros((10, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.zeros(10, dtype=np.uint8))
    path = raw / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="no complete mnist"):
        load_split("mnist", "test", PRESETS["mnist"].model, data_root=str(tmp_path), download=False)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("digit", {}, "dataset is 'digit'; allowed: digits, digits-without-K, photographs, mnist"),
        ("folder:nowhere", {}, "nowhere is not a folder"),
        ("digits", {"levels": 256}, "model.levels is 256; allowed: 17, as in digits"),
        ("digits", {"image_size": 16}, "model.image_size is 16; allowed: 8"),
        ("digits", {"num_classes": 9}, "model.num_classes is 9; allowed: 10 or more"),
    ],
)
def test_what_does_not_fit_is_named(name, changes, message):
    with pytest.raises(InputError, match=message):
        load_split(name, "train", replace(DIGITS, **changes))


def test_labels_may_be_ignored():
    assert load_split("digits", "train", replace(DIGITS, num_classes=0)).num_classes == 10


def test_photographs_need_no_download_and_do_not_overlap():
    config = ModelConfig(image_size=16, channels=3, num_classes=2)
    splits = {split: load_split("photographs", split, config) for split in SPLITS}
    assert [len(splits[split]) for split in SPLITS] == [2 * 103 * 109, 2 * 26 * 6, 2 * 26 * 6]
    for data in splits.values():
        assert data.values.shape[1:] == (3, 16, 16) and data.values.dtype == torch.uint8
        assert data.labels.bincount().tolist() == [len(data) // 2] * 2
    china = splits["train"].values[splits["train"].labels == 0]
    assert torch.equal(china[0][:, :, 4:], china[1][:, :, :12])  # the crop 4 pixels to the right
    flat = [{tuple(crop) for crop in data.values.flatten(1).tolist()} for data in splits.values()]
    assert not (flat[0] & flat[1] or flat[0] & flat[2] or flat[1] & flat[2])
    with pytest.raises(InputError, match=r"model.image_size is 128; allowed: at most 96"):
        load_split("photographs", "train", ModelConfig(image_size=128, channels=3, num_classes=2))
