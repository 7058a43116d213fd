"""Configurations: presets, checks, JSON."""

import pytest

from farmer_ref import InputError, ModelConfig, TrainConfig


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("patch_size", 3, "a divisor of image_size"),
        ("patch_size", 8, "at least 4 patches"),
        ("informative", 4, "1 to 3"),
        ("informative", 0, "1 or more"),
        ("max_log_scale", 20.1, "at most 20"),
        ("max_log_scale", 0.0, "above 0"),
        ("levels", 257, "2 to 256"),
        ("flow_width", 100, "multiple of head_dim"),
        ("dropout", 1.0, "0 up to"),
        ("patch_basis", "wavelet", "pixel, pca, dct"),
        ("noise_final", 0.2, "at most noise_start"),
        ("components", 0, "1 or more"),
        ("num_classes", -1, "0 or more"),
        ("condition_repeats", 0, "1 to 1,000,000"),
        ("condition_repeats", 10**30, "1 to 1,000,000"),
    ],
)
def test_bad_model_fields_are_named(field, value, allowed):
    with pytest.raises(InputError) as raised:
        ModelConfig(**{field: value})
    message = str(raised.value)
    assert message.startswith(f"model.{field} is {value!r}; allowed: ")
    assert allowed in message
    assert "\n" not in message


def test_unknown_fields_are_named():
    with pytest.raises(InputError, match="^field is 'model.wings'; allowed: image_size, channels, levels, "):
        ModelConfig(wings=2)
    with pytest.raises(InputError, match="^field is 'wings'; allowed: out, resume, steps, "):
        TrainConfig(wings=2, model=ModelConfig())


def test_a_flow_that_sees_the_class_needs_classes():
    with pytest.raises(InputError, match="flow_sees_class is True"):
        ModelConfig(flow_sees_class=True, num_classes=0)
