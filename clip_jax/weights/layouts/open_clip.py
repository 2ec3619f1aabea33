"""OpenAI's and open_clip's state dictionary <-> our parameter tree: one table, both ways.

Names are those of the released code (`visual.…`, `transformer.resblocks.N.…`); matrices are
(out, in), convolutions (out, in, h, w), and query, key and value are stacked on the first axis.
Models with their own text tower class ("custom text") have the same text names under `text.`;
timm's image towers are in `timm.py`.
"""

import functools
import re
from collections.abc import Callable, Iterator

from clip_jax.models.config import ClipConfig
from clip_jax.models.kinds import BertConfig, ConvNextConfig, ResNetConfig, VisionConfig, VitConfig
from clip_jax.weights.layouts.bert import open_clip_bert_rules
from clip_jax.weights.layouts.timm import has_timm_tower, timm_rules
from clip_jax.weights.rules.table import (
    Rule,
    Tensors,
    affine,
    attention_out,
    batch_norm,
    blocks,
    linear,
    under,
)

# These files also hold tensors that are neither parameters nor running statistics.
IGNORED = re.compile(
    r"(^|\.)(num_batches_tracked|attn_mask|position_ids|token_type_ids)$"
    r"|^(input_resolution|context_length|vocab_size)$"
)


def _convolution(theirs: str, ours: str) -> Rule:
    return Rule(f"{theirs}.weight", f"{ours}/kernel", "convolution")


def block_rules(layer_scale: bool = False) -> tuple[Rule, ...]:
    """Rules of one residual block (`resblocks.N.`)."""
    scales = [Rule(f"ls_{i}.gamma", f"{b}_scale") for i, b in ((1, "attention"), (2, "mlp"))]
    return (
        *affine("ln_1", "attention_norm"),
        Rule("attn.in_proj_weight", "attention/query_key_value", "into_heads"),
        Rule("attn.in_proj_bias", "attention/query_key_value_bias", "flat"),
        *attention_out("attn.out_proj"),
        *affine("ln_2", "mlp_norm"),
        *linear("mlp.c_fc", "mlp/in"),
        *linear("mlp.c_proj", "mlp/out"),
        *(scales if layer_scale else ()),
    )


RESNET = (
    *(_convolution(f"visual.conv{i}", f"vision/stem_conv{i}") for i in (1, 2, 3)),
    *(rule for i in (1, 2, 3) for rule in batch_norm(f"visual.bn{i}", f"vision/stem_norm{i}")),
    Rule(
        "visual.attnpool.positional_embedding",
        "vision/attention_pool/positions",
        resize="grid",
        prefix=1,
    ),
    *linear("visual.attnpool.q_proj", "vision/attention_pool/query"),
    *linear("visual.attnpool.k_proj", "vision/attention_pool/key"),
    *linear("visual.attnpool.v_proj", "vision/attention_pool/value"),
    *linear("visual.attnpool.c_proj", "vision/attention_pool/out"),
)
BOTTLENECK = (
    *(_convolution(f"conv{i}", f"conv{i}") for i in (1, 2, 3)),
    *(rule for i in (1, 2, 3) for rule in batch_norm(f"bn{i}", f"norm{i}")),
)
SHORTCUT = (
    _convolution("downsample.0", "shortcut"),
    *batch_norm("downsample.1", "shortcut_norm"),
)


def _resnet_rules(config: ResNetConfig) -> Iterator[Rule]:
    yield from RESNET
    for stage, depth in enumerate(config.layers, start=1):
        for n in range(depth):
            rules = BOTTLENECK + (SHORTCUT if n == 0 else ())
            yield from under(rules, f"visual.layer{stage}.{n}.", f"vision/stage{stage}_block{n}/")


def _vit_rules(config: VitConfig, scanned: bool) -> Iterator[Rule]:
    yield Rule("visual.conv1.weight", "vision/patch_embedding", "convolution")
    yield Rule("visual.class_embedding", "vision/class_token")
    yield Rule("visual.positional_embedding", "vision/positions", resize="grid", prefix=1)
    yield from affine("visual.ln_post", "vision/post_norm")
    yield Rule("visual.proj", "vision/projection")
    if config.pre_norm:
        yield from affine("visual.ln_pre", "vision/pre_norm")
    yield from blocks(
        block_rules(config.layer_scale is not None),
        "visual.transformer.resblocks.{}.",
        "vision/transformer",
        config.layers,
        scanned,
    )


def _vision_rules(tower: VisionConfig, scanned: bool) -> Iterator[Rule]:
    if isinstance(tower, ResNetConfig):
        return _resnet_rules(tower)
    if isinstance(tower, VitConfig) and not has_timm_tower(tower):
        return _vit_rules(tower, scanned)
    return timm_rules(tower, scanned)


def _text_rules(config: ClipConfig) -> Iterator[Rule]:
    yield Rule("token_embedding.weight", "text/token_embedding")
    yield Rule("positional_embedding", "text/positions", resize="line")
    yield from affine("ln_final", "text/final_norm")
    if config.text.projection == "linear":
        yield Rule("text_projection", "text/projection")
    elif config.text.projection == "linear_bias":
        yield Rule("text_projection.weight", "text/projection", "matrix")
        yield Rule("text_projection.bias", "text/projection_bias")
    yield from blocks(
        block_rules(),
        "transformer.resblocks.{}.",
        "text/transformer",
        config.text.layers,
        config.scan_layers,
    )


def has_custom_text(config: ClipConfig) -> bool:
    """Whether open_clip stores the text tower under `text.`: because it must, or because its
    published configurations do."""
    return (
        isinstance(config.text, BertConfig)
        or config.decoder is not None
        or config.text.projection != "linear"
        or (has_timm_tower(config.vision) and not isinstance(config.vision, ConvNextConfig))
    )


def open_clip_rules(config: ClipConfig, custom_text: bool | None = None) -> list[Rule]:
    """The full table of one architecture: a rule per tensor of the file.

    `custom_text`: whether the file has the text tower under `text.`; None means open_clip's choice.
    """
    custom = has_custom_text(config) if custom_text is None else custom_text
    bert = isinstance(config.text, BertConfig)
    text = open_clip_bert_rules(config) if bert else _text_rules(config)
    return [
        Rule("logit_scale", "logit_scale"),
        *([] if config.logit_bias_init is None else [Rule("logit_bias", "logit_bias")]),
        *(under(text, "text." if custom and not bert else "", "")),
        *_vision_rules(config.vision, config.scan_layers),
        *(coca_rules(config) if config.decoder is not None else ()),
    ]


def rules_of(tensors: Tensors) -> Callable[[ClipConfig], list[Rule]]:
    """The table of a file, by where it has the text tower."""
    custom = any(name.startswith("text.") for name in tensors.shapes)
    return functools.partial(open_clip_rules, custom_text=custom)


def coca_rules(config: ClipConfig) -> list[Rule]:
    """`text.cls_emb`, `visual.attn_pool.…` and `text_decoder.…`, as far as `config` has them."""
    rules: list[Rule] = []
    if config.text.pool == "appended":
        rules.append(Rule("text.cls_emb", "text/class_token"))
    if getattr(config.vision, "pool", None) == "queries":
        rules += under(_pool_rules(config), "visual.attn_pool.", "vision/query_pool/")
    if config.decoder is not None:
        decoder = _decoder_rules(config.decoder.layers, config.scan_layers)
        rules += under(decoder, "text_decoder.", "decoder/")
    return rules


def _pool_rules(config: ClipConfig) -> Iterator[Rule]:
    yield Rule("query", "queries")
    yield from affine("ln_q", "query_norm")
    yield from affine("ln_k", "memory_norm")
    if config.vision.width == config.embed_dim:
        yield Rule("attn.in_proj_weight", "attention/query_key_value", "into_heads")
    else:  # keys and values have the image tower's width, so their matrices are separate
        yield Rule("attn.q_proj_weight", "attention/query", "into_heads")
        for index, name in enumerate(("k_proj_weight", "v_proj_weight")):
            yield Rule(f"attn.{name}", "attention/key_value", "into_heads", at=(slice(None), index))
    yield Rule("attn.in_proj_bias", "attention/query_key_value_bias", "flat")
    yield from attention_out("attn.out_proj")


def _decoder_rules(layers: int, scanned: bool) -> Iterator[Rule]:
    both = block_rules()
    cross = (*both, *affine("ln_1_kv", "memory_norm"))
    for theirs, ours, rules in (("resblocks", "self", both), ("cross_attn", "cross", cross)):
        yield from blocks(
            under(rules, "", f"{ours}/"),
            f"{theirs}.{{}}.",
            "transformer",
            layers,
            scanned,
        )
    yield from affine("ln_final", "final_norm")
    yield Rule("text_projection", "head")
