"""Makes tests/support/goldens/convnext*.npz: tiny CLIPs with timm's ConvNeXt as their image tower.

Run it as make_goldens.py, which says what the files hold, from the root of the repository:

    python tests/oracle/make_convnext_golden.py
"""

from typing import Any

from make_goldens import TEXT
from timm.models import register_model
from timm.models.convnext import ConvNeXt
from timm_writer import tower, write
from torch import nn

DIMS = (4, 8, 16, 32)


@register_model
def convnext_golden(**kwargs: Any) -> nn.Module:
    """The smallest, with timm's defaults."""
    return tower(ConvNeXt, kwargs, depths=(1, 1, 2, 1), dims=DIMS)


@register_model
def convnext_golden_eps(**kwargs: Any) -> nn.Module:
    """With the epsilon of convnext_xxlarge."""
    return tower(ConvNeXt, kwargs, depths=(1, 1, 1, 1), dims=DIMS, norm_eps=1e-5)


MODELS: dict[str, dict[str, Any]] = {
    "convnext": {
        "embed_dim": 12,
        "vision_cfg": {
            "timm_model_name": "convnext_golden",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": {**TEXT, "layers": 1},
        "logit_scale": 2.625,
    },
    "convnext_mlp": {
        "embed_dim": 10,
        "vision_cfg": {
            "timm_model_name": "convnext_golden_eps",
            "timm_pool": "",
            "timm_proj": "mlp",
            "image_size": 64,
        },
        "text_cfg": {**TEXT, "layers": 1},
        "logit_scale": 2.625,
    },
}


if __name__ == "__main__":
    write(MODELS)
