"""Names of timm's Transformer image towers, as open_clip stores them under `visual.trunk.`.

These are SigLIP, EVA-02 and Perception Encoder. Matrices are (out, in); query, key and value are
one `qkv` or three `q_proj`, `k_proj`, `v_proj`.
"""

from collections.abc import Iterator

from clip_jax.models.config import VitConfig
from clip_jax.weights.rules.table import Rule, affine, blocks, linear, under

KERNEL, BIAS = "attention/query_key_value", "attention/query_key_value_bias"


def _attention(config: VitConfig) -> Iterator[Rule]:
    """Rules for query, key, value and output of one block, under `attn.`."""
    if config.inner_norm:  # EVA-02 B and L have three matrices, and keys without a bias
        for index, name in enumerate("qkv"):
            part = (slice(None), index)
            yield Rule(f"attn.{name}_proj.weight", KERNEL, "into_heads", part)
        yield Rule("attn.q_proj.bias", BIAS, "flat", (0,))
        yield Rule("attn.v_proj.bias", BIAS, "flat", (1,))
        yield from affine("attn.norm", "attention/inner_norm")
    else:
        yield Rule("attn.qkv.weight", KERNEL, "into_heads")
        if config.key_bias:
            yield Rule("attn.qkv.bias", BIAS, "flat")
        else:
            yield Rule("attn.q_bias", BIAS, "flat", (0,))
            yield Rule("attn.v_bias", BIAS, "flat", (1,))
    yield Rule("attn.proj.weight", "attention/out", "out_of_heads")
    yield Rule("attn.proj.bias", "attention/out_bias")


def _mlp(gated: bool) -> Iterator[Rule]:
    if gated:
        yield from linear("mlp.fc1_g", "mlp/gate")
        yield from linear("mlp.fc1_x", "mlp/in")
        yield from affine("mlp.norm", "mlp/norm")
    else:
        yield from linear("mlp.fc1", "mlp/in")
    yield from linear("mlp.fc2", "mlp/out")


def _block(config: VitConfig) -> Iterator[Rule]:
    yield from affine("norm1", "attention_norm")
    yield from _attention(config)
    yield from affine("norm2", "mlp_norm")
    yield from _mlp(config.mlp == "swiglu")


def _attention_pool() -> Iterator[Rule]:
    yield Rule("latent", "probe", "one_more_axis")
    yield Rule("q.weight", KERNEL, "into_heads", (slice(None), 0))
    yield Rule("kv.weight", KERNEL, "into_heads", (slice(None), slice(1, 3)))
    yield Rule("q.bias", BIAS, "flat", (0,))
    yield Rule("kv.bias", BIAS, "flat", (slice(1, 3),))
    yield Rule("proj.weight", "attention/out", "out_of_heads")
    yield Rule("proj.bias", "attention/out_bias")
    yield from affine("norm", "mlp_norm")
    yield from _mlp(gated=False)


def timm_vit_rules(config: VitConfig, scanned: bool) -> Iterator[Rule]:
    """Rules of the whole image tower; paths from `vision/`, names from `visual.trunk.`."""
    theirs, ours = "visual.trunk.", "vision/"
    prefix = int(config.class_token)
    tower = [
        Rule("patch_embed.proj.weight", "patch_embedding", "convolution"),
        Rule("pos_embed", "positions", "one_more_axis", resize="grid", prefix=prefix),
        *affine("norm", "post_norm"),
    ]
    if config.patch_bias:
        tower.append(Rule("patch_embed.proj.bias", "patch_embedding_bias"))
    if config.class_token:
        tower.append(Rule("cls_token", "class_token", "two_more_axes"))
    if config.pre_norm:
        tower += affine("norm_pre", "pre_norm")
    if config.pool == "attention":
        tower += under(_attention_pool(), "attn_pool.", "attention_pool/")
    if config.projection == "linear_bias":
        tower.append(Rule("head.weight", "projection", "matrix"))
        tower.append(Rule("head.bias", "projection_bias"))
    yield from under(tower, theirs, ours)
    yield from blocks(
        _block(config),
        f"{theirs}blocks.{{}}.",
        f"{ours}transformer",
        config.layers,
        scanned,
    )
