"""FARMER, Flow AutoRegressive Transformer over Pixels (arXiv 2510.23588): a reference implementation.

Data flows one way through the modules; `farmer_ref.farmer` puts them together on one page:

    image --tokens--> x --flow--> z, log|det| --prior--> mixtures --mixture--> log p
"""

from farmer_ref.config import PRESETS, ModelConfig, TrainConfig
from farmer_ref.errors import InputError
from farmer_ref.farmer import Farmer, LikelihoodTerms
from farmer_ref.flow import AutoregressiveFlow
from farmer_ref.guidance import Guidance
from farmer_ref.metrics import bits_per_dim
from farmer_ref.mixture import GaussianMixture
from farmer_ref.prior import AutoregressivePrior
from farmer_ref.student import OneStepStudent
from farmer_ref.tokens import nats_to_bits_per_dim

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
