"""Tiny CoCas of open_clip with random values everywhere (tests/oracle/make_coca_golden.py)."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tiny_clip import changed, from_state_dict

from clip_jax.models.config import ClipConfig

NAMES = ("coca", "coca_class_token")


class Golden(NamedTuple):
    """One file: its configuration in our terms, its arrays, its parameters as ours."""

    config: ClipConfig
    arrays: dict[str, np.ndarray]
    params: Any

    @property
    def state(self) -> dict[str, np.ndarray]:
        """open_clip's state dictionary, float32."""
        prefix = "state/"
        found = {k: v for k, v in self.arrays.items() if k.startswith(prefix)}
        return {name.removeprefix(prefix): x.astype(np.float32) for name, x in found.items()}

    @property
    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, S, S, 3) float32, tokens (B, L) int32."""
        return self.arrays["images"].astype(np.float32), self.arrays["tokens"]


@functools.cache
def golden(name: str, **changes: Any) -> Golden:
    """The file of that name; `changes`: fields of the configuration."""
    with np.load(Path(__file__).parent / "goldens" / f"{name}.npz") as file:
        arrays = dict(file)
    settings = json.loads(str(arrays["config"]))
    vision, text, decoder = (settings[f"{part}_cfg"] for part in ("vision", "text", "multimodal"))
    pooler = {}
    if vision.get("attentional_pool"):
        pooler = {
            "vision__pool": "queries",
            "vision__pool_heads": vision["attn_pooler_heads"],
            "vision__pool_queries": vision["attn_pooler_queries"],
        }
    config = changed(
        ClipConfig(),
        name=name,
        embed_dim=settings["embed_dim"],
        image_size=vision["image_size"],
        vision__patch_size=vision["patch_size"],
        vision__width=vision["width"],
        vision__layers=vision["layers"],
        vision__heads=vision["width"] // vision["head_width"],
        vision__mlp_dim=4 * vision["width"],
        context_length=text["context_length"],
        vocab_size=text["vocab_size"],
        text__width=text["width"],
        text__layers=text["layers"],
        text__heads=text["heads"],
        text__mlp_dim=4 * text["width"],
        text__pool="appended",
        decoder__layers=decoder["layers"],
        decoder__heads=decoder["heads"],
        decoder__vocab_size=text["vocab_size"],
        # Pixels as given: the golden images are the normalised ones.
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1 / 255, 1 / 255, 1 / 255),
        **pooler,
    )
    config = changed(config, **changes)
    state = Golden(config, arrays, None).state
    return Golden(config, arrays, from_state_dict(config, state))
