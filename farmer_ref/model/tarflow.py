"""The public TARFlow weights (Zhai et al. 2025) as our flow, which is theirs, by default without the class label."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from farmer_ref.model.flow import AutoregressiveFlow
from farmer_ref.support.errors import InputError, shown

_TARFLOW_NAMES = (
    (r"\.proj_in\.", ".project_in."),
    (r"\.proj_out\.", ".project_out."),
    (r"\.pos_embed$", ".positions"),
    (r"\.class_embed$", ".class_embedding"),
    (r"\.attn_blocks\.", ".transformer.layers."),
    (r"\.attention\.norm\.", ".attention_norm."),
    (r"\.attention\.qkv\.", ".attention_in."),
    (r"\.attention\.proj\.", ".attention_out."),
    (r"\.mlp\.norm\.", ".mlp_norm."),
    (r"\.mlp\.main\.0\.", ".mlp_in."),
    (r"\.mlp\.main\.2\.", ".mlp_out."),
)


def from_tarflow(state_dict: dict[str, Tensor], *, head_dim: int = 64) -> AutoregressiveFlow:
    """The flow of the public TARFlow release (github.com/apple/ml-tarflow) from its state dict.

    Latents and inverse are the same; log|det| is a sum over N D where TARFlow takes the mean. Its network outputs
    -log sigma, so those rows of the last layer change sign; its log sigma is unbounded; a missing label is the mean of
    the class embeddings. Its `var` buffer belongs to the prior, not to the map: the public model samples with
    `flow.inverse(z * state_dict["var"].sqrt(), labels)`.
    Raises `InputError` for a state dict that is not such a model's.
    """
    if "blocks.0.proj_in.weight" not in state_dict:
        raise InputError(f"state_dict has {len(state_dict)} entries and no blocks.0.proj_in.weight; allowed: TARFlow's")
    try:
        return _converted(state_dict, head_dim)
    except (KeyError, ValueError, RuntimeError) as error:  # entries that are missing, left over or of another shape
        raise InputError(f"state_dict does not fit ({shown(str(error))}); allowed: TARFlow's") from None


def _converted(state_dict: dict[str, Tensor], head_dim: int) -> AutoregressiveFlow:
    width, channels = state_dict["blocks.0.proj_in.weight"].shape
    if width % head_dim:
        raise InputError(f"head_dim is {head_dim}; allowed: a divisor of the width, {width}")
    if state_dict["blocks.0.proj_out.weight"].shape[0] != 2 * channels:
        raise InputError("state_dict is of a volume-preserving TARFlow (nvp=False); allowed: nvp=True")
    tokens = state_dict["blocks.0.pos_embed"].shape[0]
    blocks = 1 + max(int(name.split(".")[1]) for name in state_dict if name.startswith("blocks."))
    layers = 1 + max(int(name.split(".")[3]) for name in state_dict if name.startswith("blocks.0.attn_blocks."))
    classes = state_dict.get("blocks.0.class_embed")
    flow = AutoregressiveFlow(
        tokens,
        channels,
        blocks=blocks,
        layers=layers,
        width=width,
        head_dim=head_dim,
        max_log_scale=None,
        num_classes=None if classes is None else classes.shape[0],
    )
    renamed = {}
    for name, value in state_dict.items():
        if name == "var" or name.endswith("attn_mask"):
            continue
        for pattern, ours in _TARFLOW_NAMES:
            name = re.sub(pattern, ours, name)
        if ".project_out." in name:
            negative_log_scale, shift = value.chunk(2)
            value = torch.cat([shift, -negative_log_scale])
        renamed[name] = value.squeeze(1) if name.endswith("class_embedding") else value
    flow.to(renamed["blocks.0.project_in.weight"].dtype).load_state_dict(renamed)
    return flow
