"""FARMER, Flow AutoRegressive Transformer over Pixels (arXiv 2510.23588): a reference implementation.

Files on top are commands, folders are libraries, `model` is the paper; README.md beside this file is the map. Data
flows one way; `farmer_ref.model.farmer` puts it together on one page:

    image --tokens--> x --flow--> z, log|det| --prior--> mixtures --mixture--> log p
"""

from farmer_ref.evaluation.metrics import bits_per_dim
from farmer_ref.model.config import ModelConfig
from farmer_ref.model.farmer import Farmer, LikelihoodTerms
from farmer_ref.model.flow import AutoregressiveFlow
from farmer_ref.model.guidance import Guidance
from farmer_ref.model.mixture import GaussianMixture
from farmer_ref.model.prior import AutoregressivePrior
from farmer_ref.model.student import OneStepStudent
from farmer_ref.model.tokens import nats_to_bits_per_dim
from farmer_ref.support.errors import InputError
from farmer_ref.training.config import TrainConfig
from farmer_ref.training.presets import PRESETS

__all__ = [
    "PRESETS",
    "AutoregressiveFlow",
    "AutoregressivePrior",
    "Farmer",
    "GaussianMixture",
    "Guidance",
    "InputError",
    "LikelihoodTerms",
    "ModelConfig",
    "OneStepStudent",
    "TrainConfig",
    "bits_per_dim",
    "nats_to_bits_per_dim",
]
