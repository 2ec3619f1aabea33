"""big_vision's two-tower `.npz` (SigLIP, SigLIP 2, LiT) -> ours.

Names are Flax's, with the towers under `img` and `txt`; heads have their own axis, so nothing is
transposed. The blocks of a tower are `encoderblock_0`, `encoderblock_1`, …, or, if scanned, one
`encoderblock` whose tensors have a leading axis of layers.
"""

import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import ClipConfig, differences, override
from clip_jax.models.kinds import VitConfig
from clip_jax.weights.files.tensors import find_weights, open_tensors
from clip_jax.weights.layouts.huggingface_config import siglip_config
from clip_jax.weights.layouts.layout import Layout, Opened, tokenizer_in
from clip_jax.weights.rules.table import Rule, Shape, Tensors, blocks, under

IMAGE_POSITIONS, TEXT_POSITIONS = "img/pos_embedding", "txt/pos_embedding"
SECOND_POSITIONS = "txt/Encoder_0/pos_embedding"
PATCHES, CLASS_TOKEN = "img/embedding/kernel", "img/cls"
IMAGE_BLOCKS, TEXT_BLOCKS = "img/Transformer/encoderblock", "txt/Encoder_0/encoderblock"
ATTENTION = "MultiHeadDotProductAttention_0"
POOL_HEAD = "img/MAPHead_0"

# Files from before 2022 use other names; a block once numbered all its modules in one sequence.
_OLDER_NAMES = (
    (re.compile(r"^img/Transformer/(posembed_input/)?pos_embedding$"), IMAGE_POSITIONS),
    (re.compile(r"/MultiHeadDotProductAttention_1/"), f"/{ATTENTION}/"),
    (re.compile(r"/LayerNorm_2/"), "/LayerNorm_1/"),
    (re.compile(r"/MlpBlock_3/"), "/MlpBlock_0/"),
)


def _affine(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}/scale", f"{ours}/scale"), Rule(f"{theirs}/bias", f"{ours}/bias")


def _attention(ours: str) -> Iterator[Rule]:
    for index, part in enumerate(("query", "key", "value")):
        name, at = f"{ATTENTION}/{part}", (slice(None), index)
        yield Rule(f"{name}/kernel", f"{ours}/query_key_value", at=at)
        yield Rule(f"{name}/bias", f"{ours}/query_key_value_bias", at=(index,))
    yield Rule(f"{ATTENTION}/out/kernel", f"{ours}/out")
    yield Rule(f"{ATTENTION}/out/bias", f"{ours}/out_bias")


def _dense(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}/kernel", f"{ours}/kernel"), Rule(f"{theirs}/bias", f"{ours}/bias")


MLP = (*_dense("MlpBlock_0/Dense_0", "mlp/in"), *_dense("MlpBlock_0/Dense_1", "mlp/out"))
BLOCK = (
    *_affine("LayerNorm_0", "attention_norm"),
    *_attention("attention"),
    *_affine("LayerNorm_1", "mlp_norm"),
    *MLP,
)
POOL = (
    Rule("probe", "probe", "one_more_axis"),
    *_attention("attention"),
    *_affine("LayerNorm_0", "mlp_norm"),
    *MLP,
)


def _stack(
    theirs: str, ours: str, layers: int, scanned: bool, names: Collection[str]
) -> Iterator[Rule]:
    """Rules of all blocks of a tower; either side may be scanned."""
    if not any(name.startswith(f"{theirs}/") for name in names):
        yield from blocks(BLOCK, f"{theirs}_{{}}/", ours, layers, scanned)
    elif scanned:
        yield from under(BLOCK, f"{theirs}/", f"{ours}/blocks/", at=(slice(None),))
    else:
        for n in range(layers):
            for rule in under(BLOCK, f"{theirs}/", f"{ours}/blocks_{n}/"):
                yield rule._replace(theirs_at=(n,))


def _projection(theirs: str, ours: str, kind: str) -> Iterator[Rule]:
    if kind == "linear_bias":
        yield Rule(f"{theirs}/kernel", f"{ours}/projection")
        yield Rule(f"{theirs}/bias", f"{ours}/projection_bias")


def big_vision_rules(config: ClipConfig, names: Collection[str]) -> list[Rule]:
    """The full table of one model: a rule per tensor of the file, or per layer of it.

    `names`: the file's, as `merge_position_tables` shows them.
    """
    vision, text, scanned = config.vision, config.text, config.scan_layers
    assert isinstance(vision, VitConfig)
    class_rows = int(vision.class_token)
    rules = [
        Rule("t", "logit_scale", "scalar"),
        Rule("txt/Embed_0/embedding", "text/token_embedding"),
        Rule(TEXT_POSITIONS, "text/positions", "one_more_axis", resize="line"),
        *_stack(TEXT_BLOCKS, "text/transformer", text.layers, scanned, names),
        *_affine("txt/Encoder_0/encoder_norm", "text/final_norm"),
        *_projection("txt/head", "text", text.projection),
        Rule(PATCHES, "vision/patch_embedding"),
        Rule("img/embedding/bias", "vision/patch_embedding_bias"),
        Rule(
            IMAGE_POSITIONS, "vision/positions", "one_more_axis", resize="grid", prefix=class_rows
        ),
        *_stack(IMAGE_BLOCKS, "vision/transformer", vision.layers, scanned, names),
        *_affine("img/Transformer/encoder_norm", "vision/post_norm"),
        *_projection("img/head", "vision", vision.projection),
    ]
    if config.logit_bias_init is not None:
        rules.append(Rule("b", "logit_bias", "scalar"))
    if vision.class_token:
        rules.append(Rule(CLASS_TOKEN, "vision/class_token", "two_more_axes"))
    if vision.pool == "attention":
        rules += under(POOL, f"{POOL_HEAD}/", "vision/attention_pool/")
    return rules


def _stored_names(names: Collection[str]) -> dict[str, str]:
    """{current name: name in the file}."""
    stored = {}
    for name in names:
        today = name
        for older, newer in _OLDER_NAMES:
            today = older.sub(newer, today)
        stored[name if today != name and today in names else today] = name
    return stored


def _todays_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """{current name: shape}, in file order; unchanged for current files."""
    today = {name: tuple(shapes[stored]) for name, stored in _stored_names(shapes).items()}
    if TEXT_POSITIONS in today:
        today.pop(SECOND_POSITIONS, None)
    patches, positions = today.get(PATCHES, ()), today.get(IMAGE_POSITIONS, ())
    if len(patches) == 2:  # NaFlex models take images as flattened RGB patches
        side = math.isqrt(patches[0] // 3)
        if 3 * side**2 == patches[0]:
            today[PATCHES] = (side, side, 3, patches[1])
    if len(positions) == 3:
        rows = positions[0] * positions[1]  # 1 x N, or a square grid
        if CLASS_TOKEN in today and math.isqrt(rows) ** 2 == rows:
            rows += 1
        today[IMAGE_POSITIONS] = (1, rows, positions[2])
    return today


class _Today:
    """A file under the names and shapes of current big_vision."""

    def __init__(self, tensors: Tensors):
        self.where, self._tensors = tensors.where, tensors
        self._stored = _stored_names(tensors.shapes)
        self.shapes: Mapping[str, Shape] = _todays_shapes(tensors.shapes)

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        tensor, shape = self._tensors.read(self._stored[name]), self.shapes[name]
        if name == TEXT_POSITIONS and SECOND_POSITIONS in self._stored:
            second = self._tensors.read(self._stored[SECOND_POSITIONS])
            tensor = tensor.astype(np.float32) + second.astype(np.float32)
        if tensor.size < math.prod(shape):  # the class token had no position and gets zeros
            rows = tensor.reshape(-1, shape[-1])
            tensor = np.concatenate([np.zeros_like(rows[:1]), rows])
        return tensor.reshape(shape)


def merge_position_tables(tensors: Tensors) -> Tensors:
    """Shows the file as `big_vision_rules` takes it, under current names.

    Each tower gets one table of positions, with a row for the class token if there is one, and the
    patch embedding is (p, p, 3, D). Some text towers have two tables, which were added in sequence;
    NaFlex image towers have a square table and a matrix over patches.
    """
    return _Today(tensors)


def config_from_big_vision(
    names_and_shapes: Mapping[str, Shape], architecture: str | None = None
) -> ClipConfig:
    """The configuration of a file: the row named `architecture`, or a SigLIP of these shapes.

    Accepts the file's own names or those of `merge_position_tables`; only the former reveal
    `naflex`. Raises `UserError` if the file does not have two towers of this layout, or if they
    differ from `architecture` other than in image size and context length (tables are resized).
    """
    naflex = len(names_and_shapes.get(PATCHES, ())) == 2
    found = _config_from_shapes(_todays_shapes(names_and_shapes), naflex)
    if architecture is None:
        return found
    named = get_architecture(architecture)
    for path, (ours, theirs) in differences(named, found, ("shape", "function")).items():
        raise UserError(
            f"architecture={architecture!r} has {path}={ours!r}, but the file {theirs!r}"
        )
    return override(named, vision={"naflex": naflex})


def _open(path: Path, architecture: str | None) -> Opened | None:
    """Opens an `.npz`, or a folder whose weights are in one."""
    file = find_weights(path, ("model.npz",)) if path.is_dir() else path
    if file is None or file.suffix != ".npz":
        return None
    tensors = open_tensors(file)
    config = config_from_big_vision(tensors.shapes, architecture)
    tensors = merge_position_tables(tensors)
    return Opened(
        "big_vision",
        file,
        config,
        tensors,
        functools.partial(big_vision_rules, names=tensors.shapes),
        lambda: tokenizer_in(file.parent, config),
        says_sizes=architecture is None,
    )


LAYOUT = Layout("big_vision", _open, rank=2)


def _config_from_shapes(shapes: Mapping[str, Shape], naflex: bool) -> ClipConfig:
    patches, positions = _shape(shapes, PATCHES, 4), _shape(shapes, IMAGE_POSITIONS, 3)
    class_token = CLASS_TOKEN in shapes
    vision, text = _tower(shapes, IMAGE_BLOCKS, "img"), _tower(shapes, TEXT_BLOCKS, "txt")
    pool = "class_token" if class_token else "average"
    head = shapes.get("img/head/kernel", patches)
    vocab_size = _shape(shapes, "txt/Embed_0/embedding", 2)[0]
    vision |= {
        "naflex": naflex,
        "patch_size": patches[0],
        "class_token": class_token,
        "pool": "attention" if f"{POOL_HEAD}/probe" in shapes else pool,
    }
    return siglip_config(
        vision,
        text,
        embed_dim=head[-1],
        image_size=math.isqrt(positions[1] - class_token) * patches[0],
        image_interpolation="bilinear" if naflex else "bicubic",
        context_length=_shape(shapes, TEXT_POSITIONS, 3)[1],
        vocab_size=vocab_size,
        logit_bias_init=-10.0 if "b" in shapes else None,
    )


def _shape(shapes: Mapping[str, Shape], name: str, axes: int) -> Shape:
    if name not in shapes:
        raise UserError(
            f"the file has no {name}; accepted are two-tower checkpoints of big_vision "
            "(img/…, txt/…, t)"
        )
    if len(shapes[name]) != axes:
        raise UserError(f"the file has {name} of shape {shapes[name]}; accepted are {axes} axes")
    return shapes[name]


def _tower(shapes: Mapping[str, Shape], stack: str, root: str) -> dict[str, Any]:
    """Configuration fields of one tower."""
    scanned = any(name.startswith(f"{stack}/") for name in shapes)
    block = stack if scanned else f"{stack}_0"
    query = _shape(shapes, f"{block}/{ATTENTION}/query/kernel", 4 if scanned else 3)
    mlp = _shape(shapes, f"{block}/MlpBlock_0/Dense_0/kernel", 3 if scanned else 2)
    numbers = re.compile(rf"{stack}_(\d+)/")
    looped = {match[1] for match in map(numbers.match, shapes) if match}
    return {
        "width": query[-3],
        "layers": query[0] if scanned else len(looped),
        "heads": query[-2],
        "mlp_dim": mlp[-1],
        "projection": "linear_bias" if f"{root}/head/kernel" in shapes else "none",
    }
