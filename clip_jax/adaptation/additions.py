"""Parts that methods other than LoRA add to the towers or train; `hooks` says how they enter."""

import dataclasses
import re
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from clip_jax.adaptation.tree import Adapter, flat
from clip_jax.arguments import Checked, Range
from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import is_buffer

TOWERS = ("vision", "text")


@dataclasses.dataclass(frozen=True)
class Selected(Checked):
    """Parameters of the model that are trained: full fine-tuning, or a part of it.

    All biases are BitFit (Ben Zaken et al. 2022), the norms are LayerNorm tuning.
    """

    patterns: tuple[str, ...] = (r"(vision|text)/.*",)  # regular expressions of whole paths


@dataclasses.dataclass(frozen=True)
class Bottleneck(Checked):
    """Bottlenecks after attention and MLP of every block (Houlsby et al. 2019)."""

    width: Annotated[int, Range(1)] = 64
    towers: tuple[str, ...] = TOWERS
    after_attention: bool = True


@dataclasses.dataclass(frozen=True)
class Prompts(Checked):
    """Learned tokens: VPT in the image tower (Jia et al. 2022), MaPLe's or IVLP's deep ones.

    In the image tower the first block's stand for themselves after the patches; those of deeper
    blocks take their places. In the text tower only blocks after the first have them, in the places
    of the context's words.
    """

    count: Annotated[int, Range(1)] = 4
    depth: Annotated[int, Range(1)] = 1  # number of blocks, from the first; at most all
    towers: tuple[str, ...] = ("vision",)


@dataclasses.dataclass(frozen=True)
class Prefix(Checked):
    """Keys and values before those of every attention (Li and Liang 2021)."""

    count: Annotated[int, Range(1)] = 4
    towers: tuple[str, ...] = TOWERS


def init_selected(params: Any, options: Selected) -> Adapter:
    """Returns copies of the parameters, float32, but not of running statistics.

    Raises UserError for a pattern without any.
    """
    leaves = {
        "/".join(keys): leaf
        for keys, leaf in flatten_dict(params).items()
        if not is_buffer([jax.tree_util.DictKey(key) for key in keys])
    }
    found: Adapter = {}
    for pattern in options.patterns:
        matched = [path for path in leaves if re.fullmatch(pattern, path)]
        if not matched:
            raise UserError(f"{pattern!r}: matches no parameter of the model")
        found |= {path: jnp.array(leaves[path], jnp.float32, copy=True) for path in matched}
    return found


def init_bottleneck(params: Any, options: Bottleneck, key: jax.Array) -> Adapter:
    """Makes bottlenecks, of which `up` is zero. Raises UserError for a tower without blocks."""
    names = ("mlp", "attention") if options.after_attention else ("mlp",)
    found: Adapter = {}
    for number, block in enumerate(blocks_of(params, options.towers)):
        width = width_of(params, block)
        for place, name in enumerate(names):
            shape = (width, options.width)
            down_key = jax.random.fold_in(key, number * len(names) + place)
            found |= {
                f"{block}/{name}/down": width**-0.5 * jax.random.normal(down_key, shape),
                f"{block}/{name}/down_bias": jnp.zeros(options.width),
                f"{block}/{name}/up": jnp.zeros((options.width, width)),
                f"{block}/{name}/up_bias": jnp.zeros(width),
            }
    return found


def init_prompts(config: ClipConfig, params: Any, options: Prompts, key: jax.Array) -> Adapter:
    """Makes tokens from N(0, 0.02²). Raises UserError for a tower that cannot have them."""
    found: Adapter = {}
    for number, tower in enumerate(options.towers):
        blocks = blocks_of(params, (tower,))
        check_tokens(config, tower)
        places = blocks[1 : options.depth]
        places = [tower, *places] if tower == "vision" else places
        for layer, place in enumerate(places):
            shape = (options.count, width_of(params, blocks[0]))
            token_key = jax.random.fold_in(jax.random.fold_in(key, number), layer)
            found[f"{place}/prompts"] = 0.02 * jax.random.normal(token_key, shape)
    return found


def init_prefix(config: ClipConfig, params: Any, options: Prefix, key: jax.Array) -> Adapter:
    """Makes keys and values from N(0, 0.02²). Raises UserError for a tower without blocks."""
    found: Adapter = {}
    for number, block in enumerate(blocks_of(params, options.towers)):
        check_tokens(config, block.split("/")[0])
        heads, head_dim, _ = np.shape(flat(params)[f"{block}/attention/out"])
        shape = (options.count, heads, head_dim)
        for place, name in enumerate(("key", "value")):
            token_key = jax.random.fold_in(key, 2 * number + place)
            found[f"{block}/attention/prefix_{name}"] = 0.02 * jax.random.normal(token_key, shape)
    return found


def linear_map(key: jax.Array, inputs: int, outputs: int) -> tuple[jax.Array, jax.Array]:
    """Makes a matrix (in, out) and a bias (out,) from U(-1/√in, 1/√in), as PyTorch's layers."""
    kernel_key, bias_key = jax.random.split(key)
    bound = inputs**-0.5
    return (
        jax.random.uniform(kernel_key, (inputs, outputs), jnp.float32, -bound, bound),
        jax.random.uniform(bias_key, (outputs,), jnp.float32, -bound, bound),
    )


def check_tokens(config: ClipConfig, tower: str) -> None:
    """Raises UserError if a tower cannot have learned tokens."""
    if tower == "vision" and getattr(config.vision, "rope", "none") != "none":
        raise UserError(
            f"{config.name}: its image tower rotates positions (RoPE), which learned tokens do not"
            " have; accepted methods are low_rank, bottleneck and those that train parameters"
        )


def blocks_of(params: Any, towers: tuple[str, ...]) -> list[str]:
    """Returns the paths of the towers' blocks in their order. Raises UserError for none."""
    found: list[str] = []
    for tower in towers:
        numbers = {
            int(match[1])
            for path in flat(params)
            if (match := re.match(rf"{tower}/transformer/blocks_(\d+)/", path))
        }
        if not numbers:
            raise UserError(
                f"the {tower} tower has no Transformer blocks; accepted methods are those that"
                " train parameters, and those on features"
            )
        found += [f"{tower}/transformer/blocks_{number}" for number in sorted(numbers)]
    return found


def width_of(params: Any, block: str) -> int:
    """Returns the width of a block."""
    return int(np.shape(flat(params)[f"{block}/attention/out"])[-1])
