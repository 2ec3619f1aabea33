"""Foreign preprocessing descriptions <-> our image fields, and transformers' own pixels."""

import json

import numpy as np
import pytest
from pictures import photo

from clip_jax.errors import UserError
from clip_jax.images.transform import ImageTransform
from clip_jax.models.kinds import OPENAI_MEAN, OPENAI_STD
from clip_jax.weights.rules.preprocessing import (
    from_huggingface,
    from_open_clip,
    to_huggingface,
    to_open_clip,
)

HALF = (0.5, 0.5, 0.5)


def fields(size=224, resize="shortest", interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD):
    return {
        "image_size": size,
        "image_mean": mean,
        "image_std": std,
        "image_resize": resize,
        "image_interpolation": interpolation,
    }


# As published: openai/clip-vit-base-patch32 (2021), a later one, and SigLIP's.
OLD_CLIP = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(OPENAI_MEAN),
    "image_std": list(OPENAI_STD),
    "resample": 3,
    "size": 224,
}
NEW_CLIP = {
    **OLD_CLIP,
    "crop_size": {"height": 336, "width": 336},
    "size": {"shortest_edge": 336},
    "image_processor_type": "CLIPImageProcessor",
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
}
SIGLIP = {
    "do_convert_rgb": None,
    "do_resize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "image_processor_type": "SiglipImageProcessor",
    "processor_class": "SiglipProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}
NAFLEX = {**SIGLIP, "image_processor_type": "Siglip2ImageProcessor", "resample": 2, "size": None}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (OLD_CLIP, fields()),
        (NEW_CLIP, fields(336)),
        ({**NEW_CLIP, "image_processor_type": "CLIPImageProcessorFast"}, fields(336)),
        ({"image_processor": NEW_CLIP, "processor_class": "CLIPProcessor"}, fields(336)),
        ({"image_processor_type": "CLIPImageProcessorPil"}, fields()),
        (
            {**NEW_CLIP, "size": {"height": 378, "width": 378}, "do_center_crop": False},
            fields(378, "squash"),
        ),
        (
            {**NEW_CLIP, "size": {"height": 336, "width": 336}, "resample": 2},
            fields(336, "squash", "bilinear"),
        ),
        ({**OLD_CLIP, "do_normalize": False}, fields(mean=(0.0,) * 3, std=(1.0,) * 3)),
        (SIGLIP, fields(384, "squash", mean=HALF, std=HALF)),
        ({**SIGLIP, "size": 256, "image_mean": 0.5}, fields(256, "squash", mean=HALF, std=HALF)),
        (
            {"image_processor_type": "ViTImageProcessor"},
            fields(224, "squash", "bilinear", HALF, HALF),
        ),
        (NAFLEX, fields(256, "squash", "bilinear", HALF, HALF)),
        (
            {**NAFLEX, "patch_size": 14, "max_num_patches": 729},
            fields(378, "squash", "bilinear", HALF, HALF),
        ),
    ],
)
def test_from_huggingface(config, wanted):
    assert from_huggingface(config) == wanted
    assert ImageTransform(wanted["image_size"], wanted["image_resize"])


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({**NEW_CLIP, "do_resize": False}, "do_resize=False"),
        ({**NEW_CLIP, "do_rescale": False}, "do_rescale=False"),
        ({**NEW_CLIP, "rescale_factor": 1 / 127.5}, "rescale_factor=0.0078"),
        ({**NEW_CLIP, "do_pad": True}, "do_pad=True"),
        ({**NEW_CLIP, "do_center_crop": False}, "do_center_crop=False"),
        ({**NEW_CLIP, "crop_size": 224}, "crop_size=224"),
        ({**NEW_CLIP, "resample": 1}, "resample=1"),
        ({**NEW_CLIP, "size": {"shortest_edge": 3, "longest_edge": 4}}, "size=.*longest_edge"),
        ({**NEW_CLIP, "size": {"longest_edge": 4}}, "size=.*longest_edge"),
        ({**SIGLIP, "size": {"height": 3, "width": 4}}, "size=.*'width': 4"),
        ({**SIGLIP, "size": "large"}, "size='large'"),
        ({**SIGLIP, "image_mean": [0.5, 0.5]}, "image_mean="),
        ({**SIGLIP, "image_std": ["a", 1, 1]}, "image_std="),
        ({**NAFLEX, "max_num_patches": 300}, "max_num_patches=300"),
        ({**SIGLIP, "image_processor_type": "BlipImageProcessor"}, "'BlipImageProcessor'"),
        ({}, "image_processor_type=None"),
    ],
)
def test_what_cannot_be_honoured_is_named(config, key):
    with pytest.raises(UserError, match=key):
        from_huggingface(config)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, {**fields(), "image_size": None}),
        ({"size": 240, "resize_mode": "squash"}, fields(240, "squash")),
        ({"size": [224, 224], "mean": None, "std": 1}, fields(std=(1.0,) * 3)),
        ({"size": [3, 224, 224]}, fields()),
        (
            {"interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3, "size": 378},
            fields(378, "shortest", "bilinear", HALF, HALF),
        ),
        ({"size": 64, "resize_mode": "longest", "fill_color": 255}, fields(64, "longest")),
    ],
)
def test_from_open_clip(config, wanted):
    found = from_open_clip(config)
    assert found.pop("image_fill") == config.get("fill_color", 0)
    assert found == {key: value for key, value in wanted.items() if value is not None}


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"interpolation": "nearest"}, "interpolation='nearest'"),
        ({"mode": "L"}, "mode='L'"),
        ({"resize_mode": "middle"}, "resize_mode='middle'.*longest"),
        ({"size": [224, 336]}, "size="),
        ({"fill_color": [1, 2, 3]}, "fill_color="),
        ({"crop_pct": 0.9}, "crop_pct=0.9.*only size, mode"),
    ],
)
def test_what_open_clip_has_and_we_cannot_honour_is_named(config, key):
    with pytest.raises(UserError, match=key):
        from_open_clip(config)


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_open_clip_round_trip(resize):
    ours = {**fields(240, resize, "bilinear", HALF), "image_fill": 12}
    foreign = json.loads(json.dumps(to_open_clip(ours)))
    assert list(foreign) == [
        "size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"
    ]  # fmt: skip
    assert from_open_clip(foreign) == ours
    del ours["image_fill"]
    assert from_open_clip(to_open_clip(ours)) == {**ours, "image_fill": 0}


EXPORTS = [
    ("clip", fields(32)),
    ("clip", fields(33, "shortest", "bilinear", HALF, (0.25, 0.5, 1.0))),
    ("clip", fields(32, "squash")),
    ("siglip", fields(32, "squash", "bicubic", HALF, HALF)),
    ("siglip", fields(32, "shortest", "bilinear", HALF, HALF)),
    ("siglip2", fields(32, "squash", "bilinear", HALF, HALF)),
]


@pytest.mark.parametrize(("model_type", "ours"), EXPORTS)
def test_huggingface_round_trip(model_type, ours):
    patch = 8 if model_type == "siglip2" else None
    foreign = json.loads(json.dumps(to_huggingface(ours, model_type, patch)))
    assert from_huggingface(foreign) == ours
    assert from_huggingface({"image_processor": foreign}) == ours


def test_what_transformers_cannot_do_is_not_written():
    for model_type, ours, patch in (
        ("clip", fields(32, "longest"), None),
        ("siglip2", fields(32, "shortest"), 8),
        ("siglip2", fields(30, "squash"), 8),
        ("siglip2", fields(32, "squash"), None),
        ("blip", fields(), None),
    ):
        with pytest.raises(UserError, match=r"cannot be saved|model_type='blip'"):
            to_huggingface(ours, model_type, patch)


SIZES = [(64, 48), (48, 65), (32, 32), (100, 40), (31, 90), (7, 7), (40, 41), (70, 30)]


def crop_offset_is_rounded_up(ours, width, height):
    """Where torchvision rounds half to even upwards; transformers' offsets are rounded down."""
    longer = int(ours["image_size"] * max(width, height) / min(width, height))
    return ours["image_resize"] == "shortest" and (longer - ours["image_size"]) % 4 == 3


@pytest.mark.parametrize(("model_type", "ours"), EXPORTS)
def test_transformers_makes_the_same_pixels_of_it(tmp_path, model_type, ours):
    transformers = pytest.importorskip("transformers")
    patch = 8 if model_type == "siglip2" else None
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(to_huggingface(ours, model_type, patch)))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert from_huggingface(json.loads(path.read_text())) == ours
    transform = ImageTransform(
        ours["image_size"], ours["image_resize"], ours["image_interpolation"]
    )
    mean, std = np.array(ours["image_mean"]), np.array(ours["image_std"])
    sizes = [size for size in SIZES if not crop_offset_is_rounded_up(ours, *size)]
    assert len(sizes) >= 5
    if patch:
        sizes = [(64, 64), (20, 20), (32, 32)]  # of others it keeps the aspect
    for width, height in sizes:
        image = photo(width, height)
        theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
        if patch:
            grid = ours["image_size"] // patch
            theirs = theirs.reshape(grid, grid, patch, patch, 3).transpose(0, 2, 1, 3, 4)
            theirs = theirs.reshape(ours["image_size"], ours["image_size"], 3)
        else:
            theirs = theirs.transpose(1, 2, 0)
        levels = (theirs * std + mean) * 255
        np.testing.assert_allclose(levels, transform(image), atol=1e-3, err_msg=f"{width}x{height}")
