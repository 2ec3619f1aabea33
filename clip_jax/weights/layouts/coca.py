"""What CoCa adds to open_clip's state dictionary: class token of texts, pooler, caption decoder."""

from __future__ import annotations

from collections.abc import Iterator

from clip_jax.models.config import ClipConfig
from clip_jax.weights.rules.table import Rule, affine, blocks, under


def coca_rules(config: ClipConfig) -> list[Rule]:
    """`text.cls_emb`, `visual.attn_pool.…` and `text_decoder.…`, as far as `config` has them."""
    rules: list[Rule] = []
    if config.text_pool == "appended":
        rules.append(Rule("text.cls_emb", "text/class_token"))
    if config.vision_pool == "queries":
        rules += under(_pool_rules(config), "visual.attn_pool.", "vision/query_pool/")
    if config.decoder_layers:
        rules += under(_decoder_rules(config), "text_decoder.", "decoder/")
    return rules


def _pool_rules(config: ClipConfig) -> Iterator[Rule]:
    yield Rule("query", "queries")
    yield from affine("ln_q", "query_norm")
    yield from affine("ln_k", "memory_norm")
    if config.vision_width == config.embed_dim:
        yield Rule("attn.in_proj_weight", "attention/query_key_value", "into_heads")
    else:  # keys and values are as wide as the image tower: matrices of their own
        yield Rule("attn.q_proj_weight", "attention/query", "into_heads")
        for index, name in enumerate(("k_proj_weight", "v_proj_weight")):
            yield Rule(f"attn.{name}", "attention/key_value", "into_heads", at=(slice(None), index))
    yield Rule("attn.in_proj_bias", "attention/query_key_value_bias", "flat")
    yield Rule("attn.out_proj.weight", "attention/out", "out_of_heads")
    yield Rule("attn.out_proj.bias", "attention/out_bias")


def _decoder_rules(config: ClipConfig) -> Iterator[Rule]:
    from clip_jax.weights.layouts.open_clip import (
        block_rules,  # not above: that module imports this one
    )

    both = block_rules()
    cross = (*both, *affine("ln_1_kv", "memory_norm"))
    for theirs, ours, rules in (("resblocks", "self", both), ("cross_attn", "cross", cross)):
        yield from blocks(
            under(rules, "", f"{ours}/"),
            f"{theirs}.{{}}.",
            "transformer",
            config.decoder_layers,
            config.scan_layers,
        )
    yield from affine("ln_final", "final_norm")
    yield Rule("text_projection", "head")
