"""Makes the goldens whose image towers are of timm: ConvNeXt, FastViT, ViTamin and MobileCLIP-B.

Run it as make_goldens.py, from the root of the repository; with names, it makes those alone:

    python tests/oracle/make_timm_goldens.py [NAME ...]

The files hold what make_goldens.py says, in fewer and larger arrays: `index` is a JSON object
{key: [dtype, shape]}, and the values of all keys of a dtype follow each other in `values_DTYPE`.
"""

import json
import sys
from functools import partial
from typing import Any

import make_goldens
import numpy as np
import torch
from make_goldens import TEXT
from timm.layers import HybridEmbed, LayerNorm2d
from timm.models import register_model
from timm.models.convnext import ConvNeXt
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from timm.models.vitamin import GeGluMlp, MbConvStages, VitCfg
from torch import nn

make_goldens.MAX_GRADIENT_SIZE = 32
# Its backward pass of small grouped convolutions writes beyond its buffers.
torch.backends.mkldnn.enabled = False
random_state = make_goldens.random_state

POSITIONS = partial(RepConditionalPosEnc, spatial_shape=(7, 7))


def tower(model: type[nn.Module], given: dict[str, Any], **settings: Any) -> nn.Module:
    """`model` with `settings` and with what open_clip gives to an entry point of timm."""
    unused = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    given = {key: value for key, value in given.items() if key not in unused}
    instance = model(**settings, **given)
    instance.default_cfg = {}
    return instance


@register_model
def convnext_golden(**kwargs: Any) -> nn.Module:
    """The smallest, with timm's defaults."""
    return tower(ConvNeXt, kwargs, depths=(1, 1, 2, 1), dims=(4, 8, 16, 32))


@register_model
def convnext_golden_eps(**kwargs: Any) -> nn.Module:
    """With the epsilon of convnext_xxlarge."""
    return tower(ConvNeXt, kwargs, depths=(1, 1, 1, 1), dims=(4, 8, 16, 32), norm_eps=1e-5)


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


def hybrid(given: dict[str, Any], backbone: nn.Module, **settings: Any) -> nn.Module:
    """A ViT over the tokens of a stem of convolutions."""
    embed = partial(HybridEmbed, backbone=backbone, proj=False)
    return tower(VisionTransformer, given, img_size=48, embed_layer=embed, patch_size=1, **settings)


def vitamin(given: dict[str, Any], pos_embed: str, layers: int) -> nn.Module:
    return hybrid(
        given,
        MbConvStages(VitCfg(embed_dim=(4, 8, 12), depths=(2, 4, 1), stem_width=4)),
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
    return vitamin(kwargs, "learn", layers=2)


@register_model
def vitamin_xl_golden(**kwargs: Any) -> nn.Module:
    """A ViTamin without positions, as XL."""
    return vitamin(kwargs, "none", layers=1)


@register_model
def mobileclip_b_golden(**kwargs: Any) -> nn.Module:
    """The tower of MobileCLIP-B."""
    stem = ConvStem(
        channels=(6, 6, 24), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU
    )
    return hybrid(kwargs, stem, embed_dim=24, depth=2, num_heads=3, no_embed_class=True)


# Name -> (seed, timm's model, pool, projection, width of the embeddings, side of the images)
MODELS: dict[str, tuple[int, str, str, str | None, int, int]] = {
    "convnext": (0, "convnext_golden", "", "linear", 12, 64),
    "convnext_mlp": (1, "convnext_golden_eps", "", "mlp", 10, 64),
    "fastvit": (0, "fastvit_golden", "avg", None, 10, 64),
    "fastvit_large": (1, "fastvit_large_golden", "avg", None, 10, 64),
    "vitamin": (0, "vitamin_golden", "", "linear", 10, 48),
    "vitamin_xl": (1, "vitamin_xl_golden", "", "linear", 10, 48),
    "mobileclip_b": (2, "mobileclip_b_golden", "token", None, 10, 48),
}


def settings_of(name: str) -> dict[str, Any]:
    _, model, pool, projection, embed_dim, size = MODELS[name]
    vision = {"timm_model_name": model, "timm_pool": pool, "timm_proj": projection}
    mask = {"no_causal_mask": True} if name.startswith("fastvit") else {}
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {**vision, "image_size": size},
        "text_cfg": {**TEXT, "layers": 1, **mask},
        "logit_scale": 2.625,
    }


def calibrated_state(model: nn.Module, scale: float, rng: np.random.Generator) -> dict[str, Any]:
    """Random parameters whose activations stay of order one: small layer scales, and running
    statistics near those that a batch meets in evaluation."""
    state = random_state(model, scale, rng)
    state = {name: x / 4 if name.endswith("gamma") else x for name, x in state.items()}
    model.load_state_dict(state)

    def calibrate(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        var, mean = (x.numpy() for x in torch.var_mean(inputs[0], dim=(0, 2, 3)))
        mean = mean + 0.3 * var**0.5 * rng.standard_normal(mean.shape)
        # A mean far from 0 against the deviation would make the tower a test of rounding.
        var = np.maximum(var * rng.uniform(0.5, 1.6, var.shape), 0.1 * mean**2)
        for buffer, value in ((norm.running_mean, mean), (norm.running_var, var)):
            buffer.copy_(torch.tensor(coarse(value)))

    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    hooks = [norm.register_forward_pre_hook(calibrate) for norm in norms.values()]
    model.eval()
    with torch.no_grad():
        model.encode_image(
            torch.tensor(rng.standard_normal((16, 3, *model.visual.image_size))).float()
        )
    for hook in hooks:
        hook.remove()
    names = [f"{name}.running_{which}" for name in norms for which in ("mean", "var")]
    return state | {name: model.state_dict()[name].clone() for name in names}


def coarse(array: np.ndarray) -> np.ndarray:
    """Values of four bits' mantissa, as float32: exact in float16, and small in a file."""
    bits = array.astype(np.float16).view(np.uint16) & 0xFFC0
    return bits.view(np.float16).astype(np.float32)


make_goldens.random_state, make_goldens.coarse = calibrated_state, coarse


def pack(arrays: dict[str, Any]) -> dict[str, Any]:
    """Many small arrays as few large ones."""
    arrays = {name: np.asarray(array) for name, array in arrays.items() if name != "config"}
    index = {name: [array.dtype.name, array.shape] for name, array in arrays.items()}
    dtypes = {array.dtype for array in arrays.values()}
    values = {
        f"values_{dtype.name}": np.concatenate(
            [array.reshape(-1) for array in arrays.values() if array.dtype == dtype]
        )
        for dtype in dtypes
    }
    return {"index": json.dumps(index), **values}


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        made = make_goldens.make(settings_of(name), seed=MODELS[name][0])
        make_goldens.write(name, made, {"config": made["config"], **pack(made)})
