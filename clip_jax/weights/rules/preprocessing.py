"""Other libraries' image preprocessing <-> our image fields, as pure functions of dictionaries.

Our fields are `ClipConfig`'s image_size, image_mean, image_std, image_resize, image_interpolation
and image_fill. A key that our transform cannot reproduce is refused, never approximated: wrong
preprocessing costs accuracy without any sign of it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.kinds import OPENAI_MEAN, OPENAI_STD

_HALF = (0.5, 0.5, 0.5)
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's constants
_RESAMPLE_NUMBER = {name: number for number, name in _RESAMPLE.items()}

_SQUARE = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": _HALF,
    "image_std": _HALF,
}
# transformers' class without "ImageProcessor" -> its defaults for missing keys
_HUGGINGFACE_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": {
        "size": {"shortest_edge": 224},
        "crop_size": 224,
        "do_center_crop": True,
        "resample": 3,
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
    },
    "Siglip": {**_SQUARE, "resample": 3},
    "ViT": {**_SQUARE, "resample": 2},
    "Siglip2": {
        "patch_size": 16,
        "max_num_patches": 256,
        "resample": 2,
        "image_mean": _HALF,
        "image_std": _HALF,
    },
}
_OPEN_CLIP_DEFAULTS: dict[str, Any] = {
    "mode": "RGB",
    "mean": OPENAI_MEAN,
    "std": OPENAI_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def _refuse(key: str, value: Any, accepted: str) -> UserError:
    return UserError(f"image preprocessing has {key}={value!r}; accepted is {accepted}")


def _channels(key: str, value: Any) -> tuple[float, float, float]:
    """Three numbers, from one for all channels or one per channel."""
    values = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise _refuse(key, value, "a number or three")
    try:
        return float(values[0]), float(values[1]), float(values[2])
    except (TypeError, ValueError):
        raise _refuse(key, value, "a number or three") from None


def _side(key: str, value: Any) -> int:
    """N, [N], [N, N] or {"height": N, "width": N} -> N pixels."""
    sides = [value]
    if isinstance(value, Mapping):
        sides = [value.get("height"), value.get("width")]
    elif isinstance(value, list | tuple):
        sides = list(value)
    square = 1 <= len(sides) <= 2 and len(set(sides)) == 1
    if not square or not isinstance(sides[0], int) or isinstance(sides[0], bool) or sides[0] < 1:
        raise _refuse(key, value, "a square of N pixels: N or {'height': N, 'width': N}")
    return sides[0]


def from_huggingface(preprocessor_config: Mapping[str, Any]) -> dict[str, Any]:
    """`preprocessor_config.json`, or `processor_config.json` with "image_processor" -> our fields.

    Reads the CLIP, SigLIP, SigLIP 2 and ViT processors of any backend and version; missing keys get
    the defaults of their class. A SigLIP 2 processor without fixed resolution keeps the aspect
    ratio; it becomes the square of as many patches.

    Raises `UserError` naming the key whose value our transform cannot reproduce.
    """
    config = preprocessor_config
    if isinstance(config.get("image_processor"), Mapping):
        config = config["image_processor"]
    named = config.get("image_processor_type", config.get("feature_extractor_type"))
    family = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(named))
    if named is None or family not in _HUGGINGFACE_DEFAULTS:
        known = ", ".join(f"{name}ImageProcessor" for name in _HUGGINGFACE_DEFAULTS)
        raise _refuse("image_processor_type", named, known)
    given = {key: value for key, value in config.items() if value is not None}
    values = {**_HUGGINGFACE_DEFAULTS[family], **given}
    _check_steps(values)
    if not isinstance(values["resample"], int) or values["resample"] not in _RESAMPLE:
        raise _refuse("resample", values["resample"], "2 (bilinear) or 3 (bicubic)")
    size, resize = (
        _naflex_size(values) if family == "Siglip2" else _huggingface_size(values, family)
    )
    normalized = values.get("do_normalize", True)
    return {
        "image_size": size,
        "image_mean": _channels("image_mean", values["image_mean"] if normalized else 0.0),
        "image_std": _channels("image_std", values["image_std"] if normalized else 1.0),
        "image_resize": resize,
        "image_interpolation": _RESAMPLE[values["resample"]],
    }


def _check_steps(values: Mapping[str, Any]) -> None:
    for key in ("do_resize", "do_rescale"):
        if not values.get(key, True):
            raise _refuse(key, values[key], "True")
    for key in ("do_pad", "rescale_offset"):
        if values.get(key, False):
            raise _refuse(key, values[key], "False")
    factor = values.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise _refuse("rescale_factor", factor, "1/255")


def _huggingface_size(values: Mapping[str, Any], family: str) -> tuple[int, str]:
    """(pixels, "shortest" or "squash")."""
    size, crops = values["size"], values["do_center_crop"]
    if family == "CLIP" and isinstance(size, int):  # files from before 2022
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if size.get("longest_edge") is not None:
            raise _refuse("size", size, "either shortest_edge, or height and width")
        if not crops:
            raise _refuse("do_center_crop", crops, "True where size is a shortest_edge")
        side, resize = _side("size", size["shortest_edge"]), "shortest"
    else:
        side, resize = _side("size", size), "squash"
    if crops and _side("crop_size", values.get("crop_size", side)) != side:
        raise _refuse("crop_size", values["crop_size"], f"the size of the resized image, {side}")
    return side, resize


def _naflex_size(values: Mapping[str, Any]) -> tuple[int, str]:
    patches = values["max_num_patches"]
    if not isinstance(patches, int) or patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise _refuse("max_num_patches", patches, "the square of a whole number")
    return math.isqrt(patches) * _side("patch_size", values["patch_size"]), "squash"


def to_huggingface(
    image_fields: Mapping[str, Any], model_type: str, patch_size: int | None = None
) -> dict[str, Any]:
    """Our fields -> `preprocessor_config.json`, for transformers' `AutoImageProcessor`.

    `model_type` is config.json's: "clip", "siglip" (also for SigLIP 2 of fixed resolution) or
    "siglip2", which splits into patches itself and needs `patch_size` in pixels.

    Raises `UserError` for what transformers' processors cannot do.
    """
    size, resize = image_fields["image_size"], image_fields["image_resize"]
    common = {
        "do_resize": True,
        "resample": _RESAMPLE_NUMBER[image_fields["image_interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image_fields["image_mean"]),
        "image_std": list(image_fields["image_std"]),
        "do_convert_rgb": True,
    }
    if resize not in ("shortest", "squash"):
        raise UserError(
            f"image_resize={resize!r} cannot be saved for transformers; it has shortest and squash"
        )
    if model_type == "siglip2":
        if resize != "squash" or patch_size is None or size % patch_size:
            raise UserError(
                f"image_resize={resize!r}, image_size={size} and patch_size={patch_size} cannot be "
                "saved as siglip2; accepted is squash, and a size that is a multiple of the patch"
            )
        return {
            "image_processor_type": "Siglip2ImageProcessor",
            **common,
            "patch_size": patch_size,
            "max_num_patches": (size // patch_size) ** 2,
        }
    if model_type not in ("clip", "siglip"):
        raise UserError(f"model_type={model_type!r}: accepted are clip, siglip and siglip2")
    square = {"height": size, "width": size}
    if resize == "shortest":  # only CLIP's processor crops in every version
        crop = {"size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": square}
        return {"image_processor_type": "CLIPImageProcessor", **common, **crop}
    name = "CLIPImageProcessor" if model_type == "clip" else "SiglipImageProcessor"
    whole = {"size": square, "do_center_crop": False}
    # CLIP's processor demands a crop_size even if it does not crop.
    extra = {"crop_size": square} if model_type == "clip" else {}
    return {"image_processor_type": name, **common, **whole, **extra}


def from_open_clip(preprocess_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The "preprocess_cfg" of `open_clip_config.json` -> our fields.

    Without `size` the result has no image_size: open_clip then takes the vision tower's. Keys that
    are missing or None get open_clip's defaults, which are OpenAI's values.

    Raises `UserError` naming a key that is unknown or whose value we cannot reproduce.
    """
    given = {key: value for key, value in preprocess_cfg.items() if value is not None}
    values = {**_OPEN_CLIP_DEFAULTS, **given}
    if values["interpolation"] == "random":  # for training; open_clip evaluates with bicubic
        values["interpolation"] = "bicubic"
    for key in values:
        if key != "size" and key not in _OPEN_CLIP_DEFAULTS:
            known = ", ".join(("size", *_OPEN_CLIP_DEFAULTS))
            raise _refuse(key, values[key], f"only {known}")
    choices = {
        "mode": ("RGB",),
        "interpolation": ("bicubic", "bilinear"),
        "resize_mode": ("shortest", "longest", "squash"),
    }
    for key, accepted in choices.items():
        if values[key] not in accepted:
            raise _refuse(key, values[key], " or ".join(accepted))
    fill = values["fill_color"]
    if not isinstance(fill, int) or not 0 <= fill <= 255:
        raise _refuse("fill_color", fill, "0 to 255")
    size = values.get("size")
    if isinstance(size, list | tuple) and len(size) == 3 and size[0] == 3:
        size = size[1:]  # timm writes (channels, height, width)
    return {
        **({} if size is None else {"image_size": _side("size", size)}),
        "image_mean": _channels("mean", values["mean"]),
        "image_std": _channels("std", values["std"]),
        "image_resize": values["resize_mode"],
        "image_interpolation": values["interpolation"],
        "image_fill": fill,
    }


def to_open_clip(image_fields: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields -> "preprocess_cfg" of `open_clip_config.json`, with every key given."""
    return {
        "size": image_fields["image_size"],
        "mode": "RGB",
        "mean": list(image_fields["image_mean"]),
        "std": list(image_fields["image_std"]),
        "interpolation": image_fields["image_interpolation"],
        "resize_mode": image_fields["image_resize"],
        "fill_color": image_fields.get("image_fill", 0),
    }
