"""Tensor names of BERT, RoBERTa and XLM-RoBERTa in Hugging Face's layout."""

from collections.abc import Iterator

from clip_jax.models.config import ClipConfig
from clip_jax.weights.rules.table import Rule, affine, attention, blocks, linear, under


def _block() -> Iterator[Rule]:
    parts = [f"attention.self.{name}" for name in ("query", "key", "value")]
    yield from attention(parts, "attention.output.dense")
    yield from affine("attention.output.LayerNorm", "attention_norm")
    yield from linear("intermediate.dense", "mlp/in")
    yield from linear("output.dense", "mlp/out")
    yield from affine("output.LayerNorm", "mlp_norm")


def bert_rules(config: ClipConfig, prefix: str) -> list[Rule]:
    """The tower without its projection; names under `prefix` ("text_model.")."""
    layers = config.text.layers
    rules = [
        Rule("embeddings.word_embeddings.weight", "text/token_embedding"),
        Rule("embeddings.position_embeddings.weight", "text/positions"),
        Rule("embeddings.token_type_embeddings.weight", "text/token_types"),
        *affine("embeddings.LayerNorm", "text/embedding_norm"),
        *blocks(_block(), "encoder.layer.{}.", "text/transformer", layers, config.scan_layers),
    ]
    if config.text.pool == "pooler":
        rules += linear("pooler.dense", "text/pooler")
    return list(under(rules, prefix, ""))


def open_clip_bert_rules(config: ClipConfig) -> list[Rule]:
    """The tower and its projection as open_clip stores them under `text.`."""
    projections = {
        "none": [],
        "linear": [Rule("text.proj.weight", "text/projection", "matrix")],
        "mlp": [
            Rule("text.proj.0.weight", "text/projection_in", "matrix"),
            Rule("text.proj.2.weight", "text/projection_out", "matrix"),
        ],
    }
    return [*bert_rules(config, "text.transformer."), *projections[config.text.projection]]
