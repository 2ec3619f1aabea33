"""CLIP's two towers in float64 numpy, one sample at a time, with what adaptation methods add.

Written from the papers' equations; `added` is a flat adapter of `clip_jax.adaptation`.
"""

from typing import Any

import numpy as np
from scipy.special import erf

Flat = dict[str, np.ndarray]


def norm(x: np.ndarray, params: Flat, path: str) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * params[f"{path}/scale"] + params[f"{path}/bias"]


def activation(x: np.ndarray, name: str) -> np.ndarray:
    if name == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def update(x: np.ndarray, added: Flat, path: str, scale: float) -> Any:
    """s·x·A·B (Hu et al. 2022, section 4.1), or 0."""
    if f"{path}_a" not in added:
        return 0.0
    return scale * (x @ added[f"{path}_a"]) @ added[f"{path}_b"]


def bottleneck(x: np.ndarray, added: Flat, path: str) -> np.ndarray:
    """x + up(relu(down(x))) (Houlsby et al. 2019, figure 2), or x."""
    if f"{path}/down" not in added:
        return x
    hidden = np.maximum(x @ added[f"{path}/down"] + added[f"{path}/down_bias"], 0)
    return x + hidden @ added[f"{path}/up"] + added[f"{path}/up_bias"]


def attention(
    x: np.ndarray, params: Flat, added: Flat, path: str, causal: bool, scale: float
) -> np.ndarray:
    kernel, bias = params[f"{path}/query_key_value"], params[f"{path}/query_key_value_bias"]
    width, _, heads, head_dim = kernel.shape
    query, key, value = (
        (
            x @ kernel[:, i].reshape(width, -1)
            + bias[i].reshape(-1)
            + update(x, added, f"{path}/{name}", scale)
        ).reshape(len(x), heads, head_dim)
        for i, name in enumerate(("query", "key", "value"))
    )
    before = 0
    if f"{path}/prefix_key" in added:  # Li and Liang 2021: [prefix; tokens]
        before = len(added[f"{path}/prefix_key"])
        key = np.concatenate([added[f"{path}/prefix_key"], key])
        value = np.concatenate([added[f"{path}/prefix_value"], value])
    mixed = np.zeros((len(x), heads, head_dim))
    for head in range(heads):
        for row in range(len(x)):
            seen = before + row + 1 if causal else len(key)
            scores = key[:seen, head] @ query[row, head] / np.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            mixed[row, head] = weights @ value[:seen, head] / weights.sum()
    mixed = mixed.reshape(len(x), -1)
    out = mixed @ params[f"{path}/out"].reshape(-1, width) + params[f"{path}/out_bias"]
    return out + update(mixed, added, f"{path}/out", scale)


def blocks(
    x: np.ndarray, params: Flat, added: Flat, tower: str, config: Any, scale: float
) -> np.ndarray:
    for layer in range(config.layers):
        path = f"{tower}/transformer/blocks_{layer}"
        prompts = added.get(f"{path}/prompts")
        if prompts is not None and tower == "vision":
            x = np.concatenate([x[: -len(prompts)], prompts])  # VPT-deep, equation 5
        elif prompts is not None:
            x = np.concatenate([x[:1], prompts, x[1 + len(prompts) :]])  # MaPLe, equation 2
        inner = norm(x, params, f"{path}/attention_norm")
        causal = tower == "text"
        mixed = attention(inner, params, added, f"{path}/attention", causal, scale)
        x = x + bottleneck(mixed, added, f"{path}/attention")
        inner = norm(x, params, f"{path}/mlp_norm")
        hidden = (
            inner @ params[f"{path}/mlp/in/kernel"]
            + params[f"{path}/mlp/in/bias"]
            + update(inner, added, f"{path}/mlp/in/kernel", scale)
        )
        hidden = activation(hidden, config.activation)
        out = (
            hidden @ params[f"{path}/mlp/out/kernel"]
            + params[f"{path}/mlp/out/bias"]
            + update(hidden, added, f"{path}/mlp/out/kernel", scale)
        )
        x = x + bottleneck(out, added, f"{path}/mlp")
    return x


def encode_image(
    image_SSC: np.ndarray, params: Flat, added: Flat, config: Any, scale: float = 1.0
) -> np.ndarray:
    """(S, S, 3) normalised -> (D,), not L2-normalised."""
    patch = config.vision.patch_size
    grid = config.image_size // patch
    tokens = [params["vision/class_token"]]
    for row in range(grid):
        for column in range(grid):
            pixels = image_SSC[row * patch :, column * patch :][:patch, :patch]
            kernel = params["vision/patch_embedding"]
            token = np.tensordot(pixels, kernel, 3)
            token = token + update(pixels.reshape(-1), added, "vision/patch_embedding", scale)
            tokens.append(token)
    x = np.stack(tokens) + params["vision/positions"]
    prompts = added.get("vision/prompts")
    if prompts is not None:
        x = np.concatenate([x, prompts])
    x = norm(x, params, "vision/pre_norm")
    x = blocks(x, params, added, "vision", config.vision, scale)
    pooled = norm(x[0], params, "vision/post_norm")
    return pooled @ params["vision/projection"] + update(pooled, added, "vision/projection", scale)


def encode_text(
    tokens_L: np.ndarray, params: Flat, added: Flat, config: Any, scale: float = 1.0
) -> np.ndarray:
    """(L,) -> (D,), not L2-normalised; the end of text is the largest id."""
    x = params["text/token_embedding"][tokens_L] + params["text/positions"][: len(tokens_L)]
    x = blocks(x, params, added, "text", config.text, scale)
    pooled = norm(x[int(np.argmax(tokens_L))], params, "text/final_norm")
    return pooled @ params["text/projection"] + update(pooled, added, "text/projection", scale)
