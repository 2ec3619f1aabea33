"""Rotary positions on a grid of patches (Su et al. 2021; EVA-02, Perception Encoder)."""

import numpy as np

from clip_jax.models.kinds import HybridConfig, VitConfig

TEMPERATURE = 10_000.0


def rope_tables(config: VitConfig | HybridConfig, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of every token's angles, (L, K) float32 each; K is the width of a head.

    The first half of a head's features rotates with one coordinate, the second with the other
    (`rope` gives the order), each feature pair with its own frequency. Positions are scaled
    so that any grid spans `rope_grid`, on which the model was trained. A class token is not
    rotated.
    """
    grid, bands = config.grid(image_size), config.width // config.heads // 4
    frequencies = (1.0 / TEMPERATURE ** (np.arange(bands) / bands)).astype(np.float32)
    steps = np.arange(grid, dtype=np.float32) + np.float32(config.rope_offset)
    steps = steps / np.float32(grid) * np.float32(config.rope_grid)
    rows, columns = np.meshgrid(steps, steps, indexing="ij")
    coordinates = (rows, columns) if config.rope == "yx" else (columns, rows)
    angles = np.concatenate([x.reshape(-1, 1) * frequencies for x in coordinates], axis=-1)
    angles = np.repeat(angles, 2, axis=-1)  # both features of a pair share an angle
    if config.class_token:
        angles = np.concatenate([np.zeros_like(angles[:1]), angles])
    return np.cos(angles), np.sin(angles)
