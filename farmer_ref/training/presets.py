"""The presets: the paper's models, and small ones that a laptop trains.

`python -m farmer_ref.train --preset NAME`; every field is also a flag.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from farmer_ref.model.config import ModelConfig
from farmer_ref.model.guidance import Guidance
from farmer_ref.training.config import TrainConfig


def _preset(name: str, model: ModelConfig, **training: Any) -> TrainConfig:
    return TrainConfig(model=model, preset=name, out=f"runs/{name}", **training)


_IMAGENET = 1_281_167  # training images
_PAPER_RUN: dict[str, Any] = {
    "batch_size": 256,  # ours
    "learning_rate": 1e-4,
    "final_learning_rate": 1e-6,
    "warmup_steps": 5000,
    "weight_decay": 0.03,
    "ema_decay": 0.9999,
    "precision": "bfloat16",
    "workers": 8,
    "log_every": 100,
    "validate_every": 10_000,
    "sample_every": 10_000,
    "checkpoint_every": 5000,
}


def _paper(
    name: str,
    patch_size: int,
    blocks: int,
    layers: int,
    prior_layers: int,
    prior_width: int,
    scale: float,
    scoring: tuple[float, float] = (0.2, 0.9),
) -> TrainConfig:
    """Table 1 and §4.1 at 256x256, guidance from Table 6: w, and (T_pi,v, T_sigma,v) of the weights.

    At patch 8 the paper gives no I, R, K: we take I = 32 of 192, and the same K. The pools of redundant candidates have
    the default sizes of `Guidance`, 192 + 64, which are ours: how many of them count depends on how far p_c and p_u are
    apart (a shift of .1 in each of R = 640 channels at w = 1.5 leaves five), so look at the report of a sample.
    """
    model = ModelConfig(
        image_size=256,
        channels=3,
        patch_size=patch_size,
        num_classes=1000,
        flow_blocks=blocks,
        flow_layers=layers,
        flow_width=768,
        prior_layers=prior_layers,
        prior_width=prior_width,
        informative=128 if patch_size == 16 else 32,
        components=64,
        redundant_components=200,
        condition_repeats=64,
        max_log_scale=2.5,  # 28 and 32 blocks: at most e^80 in all
        dequantisation="gaussian",
    )
    return _preset(
        name,
        model,
        dataset="folder:data/imagenet",
        guidance=Guidance(
            scale=scale,
            candidates_conditional=5,
            candidates_unconditional=5,
            weight_temperature=1.0,
            scale_temperature=0.9 if patch_size == 16 else 1.0,
            scoring_weight_temperature=scoring[0],
            scoring_scale_temperature=scoring[1],
            resampling_temperature=1.1,
        ),
        flip=True,
        steps=1_600_000,  # 320 epochs of ImageNet at batch 256 (§4.1; the batch size is ours)
        **_PAPER_RUN,
    )


_DIGITS = ModelConfig(
    image_size=8,
    channels=1,
    levels=17,
    patch_size=2,
    flow_blocks=4,
    flow_layers=2,
    flow_width=64,
    prior_layers=4,
    prior_width=64,
    head_dim=32,
    informative=3,
    components=16,
    redundant_components=16,
    condition_repeats=1,
    max_log_scale=4.0,
    dropout=0.3,
)
_DIGITS_RUN: dict[str, Any] = {"steps": 3500, "learning_rate": 2e-3, "weight_decay": 0.05}
_PHOTOGRAPHS = ModelConfig(
    image_size=16,
    channels=3,
    patch_size=4,
    num_classes=2,
    flow_blocks=4,
    flow_layers=2,
    flow_width=96,
    prior_layers=4,
    prior_width=96,
    head_dim=32,
    informative=12,
    components=16,
    redundant_components=32,
    condition_repeats=1,
    max_log_scale=4.0,
    patch_basis="pca",
)
_MNIST = ModelConfig(  # for a CPU: 1.8M parameters, D = 16
    image_size=28,
    patch_size=4,
    flow_blocks=4,
    flow_layers=2,
    flow_width=96,
    prior_layers=6,
    prior_width=96,
    head_dim=32,
    informative=8,
    components=32,
    redundant_components=64,
    condition_repeats=1,
    max_log_scale=4.0,
    pixels="histogram",
    channel_mixing="learned",
)
_MNIST_NOISE = dataclasses.replace(_MNIST, dequantisation="gaussian", pixels="linear", channel_mixing="none")
_MNIST_P2 = dataclasses.replace(_MNIST, patch_size=2, informative=3, redundant_components=32, noise_width=16)
_MNIST_RUN: dict[str, Any] = {
    "dataset": "mnist",
    "steps": 16_000,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "ema_decay": 0.999,
    "validate_every": 4000,
    "sample_every": 4000,
}
_MNIST_QUICK = dataclasses.replace(  # .7M parameters, minutes: for the paper's tables on 28x28
    _MNIST, flow_width=64, prior_layers=4, prior_width=64
)
_MNIST_LARGE = dataclasses.replace(
    _MNIST,
    flow_blocks=6,
    flow_width=256,
    prior_width=256,
    head_dim=64,
    condition_repeats=4,
    pixels="linear",
    channel_mixing="none",
    dropout=0.1,
)
_MNIST_LARGE_RUN: dict[str, Any] = {"steps": 40_000, "batch_size": 128, "weight_decay": 0.05, "ema_decay": 0.999}
_CIFAR10 = ModelConfig(
    image_size=32,
    channels=3,
    patch_size=4,
    flow_blocks=8,
    flow_layers=2,
    flow_width=384,
    prior_layers=6,
    prior_width=384,
    informative=12,
    components=64,
    redundant_components=128,
    condition_repeats=8,
    max_log_scale=4.0,
    patch_basis="pca",
    channel_mixing="learned",
    dropout=0.1,
)
_CIFAR10_SMALL = dataclasses.replace(  # for a CPU: 2.5M parameters
    _CIFAR10,
    flow_blocks=12,
    flow_layers=1,
    flow_width=96,
    prior_layers=3,
    prior_width=96,
    head_dim=32,
    components=32,
    redundant_components=64,
    condition_repeats=1,
    dropout=0.0,
)
_IMAGENET64 = dataclasses.replace(
    _CIFAR10,
    image_size=64,
    num_classes=1000,
    flow_layers=4,
    flow_width=512,
    prior_layers=12,
    prior_width=768,
    condition_repeats=16,
    dropout=0.0,
)

PRESETS: dict[str, TrainConfig] = {
    preset.preset: preset
    for preset in (
        _preset(
            "tiny",
            dataclasses.replace(
                _DIGITS,
                flow_blocks=2,
                flow_layers=1,
                flow_width=32,
                prior_layers=1,
                prior_width=32,
                head_dim=16,
                components=4,
                redundant_components=4,
                dropout=0.0,
            ),
            steps=200,
            validate_every=100,
            sample_every=100,
            checkpoint_every=50,
            warmup_steps=20,
        ),
        _preset("digits", dataclasses.replace(_DIGITS, pixels="histogram"), **_DIGITS_RUN),
        _preset("digits-noise", dataclasses.replace(_DIGITS, dequantisation="gaussian"), **_DIGITS_RUN),
        _preset("photographs", _PHOTOGRAPHS, dataset="photographs", flip=True, steps=4000, batch_size=32),
        _preset(
            "cifar10-crops",
            dataclasses.replace(_PHOTOGRAPHS, num_classes=10),
            dataset="cifar10-crops",
            flip=True,
            steps=4000,
        ),
        _preset("mnist", _MNIST, **_MNIST_RUN),
        _preset("mnist-p2", _MNIST_P2, **{**_MNIST_RUN, "batch_size": 16, "steps": 10_000}),
        _preset("mnist-noise", _MNIST_NOISE, **_MNIST_RUN),
        _preset("mnist-quick", _MNIST_QUICK, **{**_MNIST_RUN, "batch_size": 16, "steps": 1600, "ema_decay": 0.998}),
        _preset("mnist-large", _MNIST_LARGE, dataset="mnist", **_MNIST_LARGE_RUN),
        _preset("fashion-mnist", _MNIST_LARGE, dataset="fashion-mnist", **_MNIST_LARGE_RUN),
        _preset(
            "cifar10",
            _CIFAR10,
            dataset="cifar10",
            flip=True,
            steps=200_000,
            batch_size=128,
            learning_rate=5e-4,
            warmup_steps=1000,
            ema_decay=0.9995,
            precision="bfloat16",
            validate_every=2000,
            sample_every=5000,
            checkpoint_every=2000,
        ),
        _preset(
            "cifar10-small",
            _CIFAR10_SMALL,
            dataset="cifar10",
            flip=True,
            steps=20_000,
            batch_size=32,
            learning_rate=2e-3,
            weight_decay=0.05,
            ema_decay=0.999,
            validate_every=1000,
            sample_every=0,
        ),
        _preset(
            "imagenet64",
            _IMAGENET64,
            dataset="folder:data/imagenet",
            flip=True,
            steps=500_000,
            batch_size=256,
            learning_rate=2e-4,
            warmup_steps=5000,
            ema_decay=0.9999,
            precision="bfloat16",
            workers=8,
            log_every=100,
            validate_every=5000,
            sample_every=10_000,
            checkpoint_every=5000,
        ),
        _paper("farmer-1.1b-p16", 16, blocks=28, layers=4, prior_layers=12, prior_width=768, scale=2.5),
        _paper("farmer-1.1b-p8", 8, blocks=28, layers=4, prior_layers=12, prior_width=768, scale=2.0),
        _paper("farmer-1.9b-p16", 16, blocks=32, layers=6, prior_layers=24, prior_width=1024, scale=3.5),
        _paper(
            "farmer-1.9b-p8",
            8,
            blocks=32,
            layers=6,
            prior_layers=24,
            prior_width=1024,
            scale=1.5,
            scoring=(0.1, 1.0),
        ),
    )
}
"""Every preset, by name: `PRESETS["digits"]` is a run, `PRESETS["digits"].model` its model."""

DISTILLATIONS: dict[str, dict[str, Any]] = {
    "digits": {},
    # 60 epochs are the paper's. It says no more of how a student is trained; the rest is as for the teacher (ours).
    "farmer": {"steps": 60 * _IMAGENET // 256, **_PAPER_RUN},
}
"""Every preset of `farmer_ref.distill`, by name: what differs from the defaults of its settings."""
