"""Hugging Face's `CLIPModel`, `MetaClip2Model`, `SiglipModel` and `Siglip2Model` <-> ours.

All four use the same tensor names; matrices are (out, in), and query, key and value are separate,
except in SigLIP's pooling head, which stacks them on the first axis.
"""

import re

from clip_jax.models.config import ClipConfig
from clip_jax.models.kinds import VitConfig
from clip_jax.weights.rules.table import (
    Rule,
    affine,
    attention,
    attention_out,
    blocks,
    linear,
    under,
)

# Files from before 2023 hold the position indices as buffers.
IGNORED = re.compile(r"\.embeddings\.position_ids$")


MLP = (*linear("mlp.fc1", "mlp/in"), *linear("mlp.fc2", "mlp/out"))
BLOCK = (
    *affine("layer_norm1", "attention_norm"),
    *attention([f"self_attn.{name}_proj" for name in "qkv"], "self_attn.out_proj"),
    *affine("layer_norm2", "mlp_norm"),
    *MLP,
)
POOL_HEAD = (
    Rule("probe", "probe", "one_more_axis"),
    Rule("attention.in_proj_weight", "attention/query_key_value", "into_heads"),
    Rule("attention.in_proj_bias", "attention/query_key_value_bias", "flat"),
    *attention_out("attention.out_proj"),
    *affine("layernorm", "mlp_norm"),
    *MLP,
)
CLIP = (
    Rule("logit_scale", "logit_scale"),
    Rule("text_projection.weight", "text/projection", "matrix"),
    Rule("visual_projection.weight", "vision/projection", "matrix"),
    Rule("vision_model.embeddings.class_embedding", "vision/class_token"),
    *affine("vision_model.pre_layrnorm", "vision/pre_norm"),  # their spelling
)
SIGLIP = (
    Rule("logit_scale", "logit_scale", "scalar"),
    Rule("logit_bias", "logit_bias", "scalar"),
    Rule("text_model.head.weight", "text/projection", "matrix"),
    Rule("text_model.head.bias", "text/projection_bias"),
    Rule("vision_model.embeddings.patch_embedding.bias", "vision/patch_embedding_bias"),
    *under(POOL_HEAD, "vision_model.head.", "vision/attention_pool/"),
)


def huggingface_rules(config: ClipConfig) -> list[Rule]:
    """The full table of one model: a rule per tensor of the file.

    `config` comes from `config_from_huggingface`, or is accepted by `config_to_huggingface`.
    """
    tower, scanned = config.vision, config.scan_layers
    assert isinstance(tower, VitConfig)
    text, vision = "text_model", "vision_model"
    embeddings = f"{vision}.embeddings"
    # NaFlex models take images as patches, and embed a patch by a matrix.
    patch_kind = "out_of_heads" if tower.naflex else "convolution"
    class_rows = int(tower.class_token)
    return [
        *(SIGLIP if tower.pool == "attention" else CLIP),
        Rule(f"{text}.embeddings.token_embedding.weight", "text/token_embedding"),
        Rule(f"{text}.embeddings.position_embedding.weight", "text/positions", resize="line"),
        *blocks(
            BLOCK, f"{text}.encoder.layers.{{}}.", "text/transformer", config.text.layers, scanned
        ),
        *affine(f"{text}.final_layer_norm", "text/final_norm"),
        Rule(f"{embeddings}.patch_embedding.weight", "vision/patch_embedding", patch_kind),
        Rule(
            f"{embeddings}.position_embedding.weight",
            "vision/positions",
            resize="grid",
            prefix=class_rows,
        ),
        *blocks(
            BLOCK,
            f"{vision}.encoder.layers.{{}}.",
            "vision/transformer",
            tower.layers,
            scanned,
        ),
        *affine(f"{vision}.post_layernorm", "vision/post_norm"),
    ]
