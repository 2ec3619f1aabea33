"""OpenAI's and open_clip's native state dictionary <-> our parameter tree: one table, both ways.

Their names are those of the released code (`visual.…`, `transformer.resblocks.N.…`); matrices are
(out, in), convolutions (out, in, h, w), and query, key and value are stacked on the first axis.
Pure numpy: whoever reads a file (TorchScript, safetensors) hands its tensors over as arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clip_jax.errors import UserError
from clip_jax.models.architectures import ClipConfig
from clip_jax.models.two_tower import init_params

Shape = tuple[int, ...]

# What these files hold beside parameters and running statistics.
IGNORED = re.compile(r"(^|\.)num_batches_tracked$|^(input_resolution|context_length|vocab_size)$")
MAX_NAMES = 20  # in one error


class Kind(NamedTuple):
    """How one tensor is laid out on either side."""

    read: Callable[[np.ndarray, Shape], np.ndarray]  # theirs, our shape -> ours
    write: Callable[[np.ndarray], np.ndarray]  # ours -> theirs


KINDS = {
    "same": Kind(lambda x, shape: x, lambda x: x),
    # (out, in) <-> (in, out)
    "matrix": Kind(lambda x, shape: x.T, lambda x: x.T),
    # (out, in, h, w) <-> (h, w, in, out)
    "convolution": Kind(
        lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
    ),
    # (3·width, width) <-> (width, 3, heads, head_dim)
    "into_heads": Kind(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(x.shape[0], -1).T),
    # (3·width,) <-> (3, heads, head_dim)
    "into_heads_bias": Kind(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1)),
    # (width, width) <-> (heads, head_dim, width)
    "out_of_heads": Kind(
        lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T
    ),
}


class Rule(NamedTuple):
    """One tensor: its name there, its path here, its layout.

    `layer` is the index on the leading axis of a scanned stack, None where the leaf stands alone.
    """

    theirs: str
    ours: str
    kind: str = "same"
    layer: int | None = None


def _affine(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def _batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    statistics = ("running_mean", "mean"), ("running_var", "var")
    return *_affine(theirs, ours), *(Rule(f"{theirs}.{a}", f"{ours}/{b}") for a, b in statistics)


def _linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", "matrix"),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    )


def _convolution(theirs: str, ours: str) -> Rule:
    return Rule(f"{theirs}.weight", f"{ours}/kernel", "convolution")


BLOCK = (
    *_affine("ln_1", "attention_norm"),
    Rule("attn.in_proj_weight", "attention/query_key_value", "into_heads"),
    Rule("attn.in_proj_bias", "attention/query_key_value_bias", "into_heads_bias"),
    Rule("attn.out_proj.weight", "attention/out", "out_of_heads"),
    Rule("attn.out_proj.bias", "attention/out_bias"),
    *_affine("ln_2", "mlp_norm"),
    *_linear("mlp.c_fc", "mlp/in"),
    *_linear("mlp.c_proj", "mlp/out"),
)
TEXT = (
    Rule("logit_scale", "logit_scale"),
    Rule("token_embedding.weight", "text/token_embedding"),
    Rule("positional_embedding", "text/positions"),
    *_affine("ln_final", "text/final_norm"),
    Rule("text_projection", "text/projection"),
)
LOGIT_BIAS = (Rule("logit_bias", "logit_bias"),)
VIT = (
    Rule("visual.conv1.weight", "vision/patch_embedding", "convolution"),
    Rule("visual.class_embedding", "vision/class_token"),
    Rule("visual.positional_embedding", "vision/positions"),
    *_affine("visual.ln_post", "vision/post_norm"),
    Rule("visual.proj", "vision/projection"),
)
VIT_PRE_NORM = _affine("visual.ln_pre", "vision/pre_norm")
RESNET = (
    *(_convolution(f"visual.conv{i}", f"vision/stem_conv{i}") for i in (1, 2, 3)),
    *(rule for i in (1, 2, 3) for rule in _batch_norm(f"visual.bn{i}", f"vision/stem_norm{i}")),
    Rule("visual.attnpool.positional_embedding", "vision/attention_pool/positions"),
    *_linear("visual.attnpool.q_proj", "vision/attention_pool/query"),
    *_linear("visual.attnpool.k_proj", "vision/attention_pool/key"),
    *_linear("visual.attnpool.v_proj", "vision/attention_pool/value"),
    *_linear("visual.attnpool.c_proj", "vision/attention_pool/out"),
)
BOTTLENECK = (
    *(_convolution(f"conv{i}", f"conv{i}") for i in (1, 2, 3)),
    *(rule for i in (1, 2, 3) for rule in _batch_norm(f"bn{i}", f"norm{i}")),
)
SHORTCUT = (
    _convolution("downsample.0", "shortcut"),
    *_batch_norm("downsample.1", "shortcut_norm"),
)


def _under(rules: Iterable[Rule], theirs: str, ours: str, layer: int | None = None) -> list[Rule]:
    return [Rule(theirs + rule.theirs, ours + rule.ours, rule.kind, layer) for rule in rules]


def _blocks(theirs: str, ours: str, layers: int, scanned: bool) -> Iterator[Rule]:
    for n in range(layers):
        path = f"{ours}/transformer/blocks" + ("/" if scanned else f"_{n}/")
        yield from _under(BLOCK, f"{theirs}{n}.", path, n if scanned else None)


def _vision(config: ClipConfig) -> Iterator[Rule]:
    if isinstance(config.vision_layers, int):
        yield from VIT
        yield from VIT_PRE_NORM if config.vision_pre_norm else ()
        prefix = "visual.transformer.resblocks."
        yield from _blocks(prefix, "vision", config.vision_layers, config.scan_layers)
        return
    yield from RESNET
    for stage, depth in enumerate(config.vision_layers, start=1):
        for n in range(depth):
            rules = BOTTLENECK + (SHORTCUT if n == 0 else ())
            yield from _under(rules, f"visual.layer{stage}.{n}.", f"vision/stage{stage}_block{n}/")


def rules(config: ClipConfig) -> list[Rule]:
    """The whole table of one architecture: a rule for each tensor of the file."""
    return [
        *TEXT,
        *(LOGIT_BIAS if config.logit_bias_init is not None else ()),
        *_blocks("transformer.resblocks.", "text", config.text_layers, config.scan_layers),
        *_vision(config),
    ]


def _our_shapes(config: ClipConfig) -> dict[str, Shape]:
    tree = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def _check(problems: Mapping[str, Iterable[str]]) -> None:
    """Raises `UserError` with every non-empty list of names."""
    parts = []
    for what, found in problems.items():
        names = list(found)
        if names:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            parts.append(f"{what}: {', '.join(names[:MAX_NAMES])}{more}")
    if parts:
        raise UserError("the weights do not fit the architecture; " + "; ".join(parts))


def from_state_dict(config: ClipConfig, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Their tensors by name -> our `params`, float32 numpy arrays in the layout of `config`.

    Every tensor is used and every parameter filled, or `UserError` lists the names that are
    missing, unknown or of another shape.
    """
    table, shapes = rules(config), _our_shapes(config)
    known = {rule.theirs for rule in table}

    def leaf_shape(rule: Rule) -> Shape:
        return shapes[rule.ours] if rule.layer is None else shapes[rule.ours][1:]

    def misfit(rule: Rule) -> str | None:
        ours = np.broadcast_to(np.float32(0), leaf_shape(rule))  # a shape without its memory
        found, wanted = tensors[rule.theirs].shape, KINDS[rule.kind].write(ours).shape
        return None if found == wanted else f"{rule.theirs} {found} instead of {wanted}"

    problems = [misfit(rule) for rule in table if rule.theirs in tensors]
    _check(
        {
            "missing": [rule.theirs for rule in table if rule.theirs not in tensors],
            "unknown": [name for name in tensors if name not in known and not IGNORED.search(name)],
            "of another shape": [problem for problem in problems if problem],
        }
    )
    flat = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for rule in table:
        value = KINDS[rule.kind].read(np.asarray(tensors[rule.theirs]), leaf_shape(rule))
        flat[rule.ours][... if rule.layer is None else rule.layer] = value
    unfilled = flat.keys() - {rule.ours for rule in table}
    assert not unfilled, f"no rule for {sorted(unfilled)}"
    return unflatten_dict(flat, sep="/")


def to_state_dict(config: ClipConfig, params: Any) -> dict[str, np.ndarray]:
    """Our `params` in the layout of `config` -> their tensors by name, contiguous numpy arrays.

    The inverse of `from_state_dict`, bit for bit. Raises `UserError` listing the paths when the
    parameters are not those of `config`.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    shapes = _our_shapes(config)
    _check(
        {
            "missing": sorted(shapes.keys() - flat.keys()),
            "unknown": sorted(flat.keys() - shapes.keys()),
            "of another shape": [
                f"{path} {flat[path].shape} instead of {shape}"
                for path, shape in shapes.items()
                if path in flat and flat[path].shape != shape
            ],
        }
    )
    tensors = {}
    for rule in rules(config):
        leaf = flat[rule.ours] if rule.layer is None else flat[rule.ours][rule.layer]
        value = KINDS[rule.kind].write(leaf)
        # np.ascontiguousarray alone would turn a scalar into a vector.
        tensors[rule.theirs] = np.ascontiguousarray(value).reshape(value.shape)
    return tensors
