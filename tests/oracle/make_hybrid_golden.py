"""Makes vitamin.npz, vitamin_xl.npz and mobileclip_b.npz of tests/support/goldens.

Run it as make_goldens.py, which says what the files hold, from the root of the repository:

    python tests/oracle/make_hybrid_golden.py
"""

from functools import partial
from typing import Any

from make_goldens import TEXT
from timm.layers import HybridEmbed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from timm.models.vitamin import GeGluMlp, MbConvStages, VitCfg
from timm_writer import tower, write
from torch import nn


def _vitamin(given: dict[str, Any], pos_embed: str, layers: int) -> nn.Module:
    stages = MbConvStages(VitCfg(embed_dim=(4, 8, 12), depths=(2, 4, 1), stem_width=4))
    return tower(
        VisionTransformer,
        given,
        img_size=48,
        embed_layer=partial(HybridEmbed, backbone=stages, proj=False),
        patch_size=1,
        embed_dim=12,
        depth=layers,
        num_heads=2,
        mlp_layer=GeGluMlp,
        mlp_ratio=2.0,
        class_token=False,
        pos_embed=pos_embed,
        # open_clip asks for the entry point's default
        global_pool=given.pop("global_pool", "avg"),
    )


@register_model
def vitamin_golden(**kwargs: Any) -> nn.Module:
    """A ViTamin with positions."""
    return _vitamin(kwargs, "learn", layers=2)


@register_model
def vitamin_xl_golden(**kwargs: Any) -> nn.Module:
    """A ViTamin without positions, as XL."""
    return _vitamin(kwargs, "none", layers=1)


@register_model
def mobileclip_b_golden(**kwargs: Any) -> nn.Module:
    """The tower of MobileCLIP-B."""
    stem = ConvStem(
        channels=(6, 6, 24), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU
    )
    return tower(
        VisionTransformer,
        kwargs,
        img_size=48,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
        patch_size=1,
        embed_dim=24,
        depth=2,
        num_heads=3,
        no_embed_class=True,
    )


def _settings(name: str, embed_dim: int, pool: str, projection: str | None) -> dict[str, Any]:
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "timm_model_name": name,
            "timm_pool": pool,
            "timm_proj": projection,
            "image_size": 48,
        },
        "text_cfg": {**TEXT, "layers": 1},
        "logit_scale": 2.625,
    }


MODELS: dict[str, dict[str, Any]] = {
    "vitamin": _settings("vitamin_golden", 10, "", "linear"),
    "vitamin_xl": _settings("vitamin_xl_golden", 10, "", "linear"),
    "mobileclip_b": _settings("mobileclip_b_golden", 10, "token", None),
}


if __name__ == "__main__":
    write(MODELS)
