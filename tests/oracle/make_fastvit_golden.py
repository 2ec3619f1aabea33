"""Makes tests/support/goldens/fastvit*.npz: tiny CLIPs with timm's FastViT as their image tower.

Run it as make_goldens.py, which says what the files hold, from the root of the repository:

    python tests/oracle/make_fastvit_golden.py
"""

from functools import partial
from typing import Any

from make_goldens import TEXT
from timm.layers import LayerNorm2d
from timm.models import register_model
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm_writer import tower, write
from torch import nn

POSITIONS = partial(RepConditionalPosEnc, spatial_shape=(7, 7))


@register_model
def fastvit_golden(**kwargs: Any) -> nn.Module:
    """The settings of fastvit_mci0, 1 and 2."""
    return tower(
        FastVit,
        kwargs,
        layers=(1, 2, 1, 1),
        embed_dims=(4, 8, 16, 32),
        mlp_ratios=(3, 3, 3, 3),
        se_downsamples=(False, False, True, True),
        pos_embs=(None, None, None, POSITIONS),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        lkc_use_act=True,
    )


@register_model
def fastvit_large_golden(**kwargs: Any) -> nn.Module:
    """The settings of fastvit_mci3 and 4."""
    return tower(
        FastVit,
        kwargs,
        layers=(1, 1, 1, 1, 1),
        embed_dims=(4, 8, 16, 32, 64),
        mlp_ratios=(1, 1, 1, 1, 1),
        se_downsamples=(False,) * 5,
        downsamples=(False, True, True, True, True),
        pos_embs=(None, None, None, POSITIONS, POSITIONS),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention", "attention"),
        lkc_use_act=True,
        norm_layer=partial(LayerNorm2d, eps=1e-5),
        stem_use_scale_branch=False,
    )


def _settings(name: str) -> dict[str, Any]:
    return {
        "embed_dim": 10,
        "vision_cfg": {
            "timm_model_name": name,
            "timm_pool": "avg",
            "timm_proj": None,
            "image_size": 64,
        },
        "text_cfg": {**TEXT, "layers": 1, "no_causal_mask": True},
        "logit_scale": 2.625,
    }


MODELS = {
    "fastvit": _settings("fastvit_golden"),
    "fastvit_large": _settings("fastvit_large_golden"),
}


if __name__ == "__main__":
    write(MODELS)
