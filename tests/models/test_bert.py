"""BERT, RoBERTa and XLM-RoBERTa text towers, and VisionTextDualEncoder, against transformers."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_models import randomise
from tiny_clip import TINY, changed

import clip_jax
from clip_jax.errors import UserError
from clip_jax.models.bert import BertTextTransformer
from clip_jax.models.config import ClipConfig
from clip_jax.weights.layouts.bert import bert_rules
from clip_jax.weights.layouts.dual_encoder import config_from_dual_encoder, dual_encoder_rules
from clip_jax.weights.rules.table import (
    ArrayTensors,
    Rule,
    our_shapes,
    read_params,
    write_tensors,
)

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "attn_implementation": "eager",
}
KINDS = {
    "bert": ("Bert", {"type_vocab_size": 2, "pad_token_id": 0}),
    "roberta": ("Roberta", {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, "pad_token_id": 1}),
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def text_config(kind: str) -> Any:
    name, more = KINDS[kind]
    return getattr(transformers, f"{name}Config")(**SIZES, **more)


def padded_tokens(pad: int, length: int = 14) -> np.ndarray:
    """Rows of various lengths, one of them nothing but its two marks."""
    rng = np.random.default_rng(0)
    tokens = np.full((5, length), pad, np.int32)
    for row, words in zip(tokens, (0, 3, 7, 11, 12), strict=True):
        row[: words + 2] = [5, *rng.integers(6, 61, words), 2]
    return tokens


def our_config(kind: str, pool: str, **changes: Any) -> ClipConfig:
    theirs = text_config(kind)
    offset = 0 if kind == "bert" else theirs.pad_token_id + 1
    fields = {
        "embed_dim": 32,
        "vision__layers": 1,
        "context_length": 24 - offset,
        "vocab_size": 61,
        "norm_eps": theirs.layer_norm_eps,
        "text": {
            "kind": "bert",
            "pool": pool,
            "pad_id": theirs.pad_token_id,
            "projection": "none",
            "positions": 24,
            "position_offset": offset,
            "token_types": theirs.type_vocab_size,
            "width": 32,
            "layers": 3,
            "heads": 4,
            "mlp_dim": 48,
        },
    }
    towers = {key: value for key, value in TINY.items() if not key.startswith("text__")}
    return changed(ClipConfig(), **(towers | fields | changes))


def our_features(config: ClipConfig, state: dict[str, np.ndarray], tokens: np.ndarray) -> Any:
    """(B, D) and the parameters of the text tower, read from a bare BERT's tensors."""
    shapes = our_shapes(config)
    rest = [path for path in shapes if not path.startswith("text/")]
    rules = [*bert_rules(config, ""), *(Rule(path, path) for path in rest)]
    tensors = {**state, **{path: np.ones(shapes[path], np.float32) for path in rest}}
    ignored = re.compile(r"(?!)" if config.text.pool == "pooler" else r"^pooler\.")
    params = read_params(config, rules, ArrayTensors(tensors), ignored)
    written = dict(write_tensors(config, rules, params))
    for name, value in state.items():
        if not ignored.search(name):
            assert np.array_equal(written[name], value), name
    apply = jax.jit(lambda p, t: BertTextTransformer(config.text, config).apply({"params": p}, t))
    return np.asarray(apply(params["text"], tokens)), params["text"]


def random_bert(kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A model of transformers, and its tensors."""
    model = randomise(getattr(transformers, f"{KINDS[kind][0]}Model")(text_config(kind)))
    return model, {key: value.numpy() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("pool", ["mean", "first", "pooler"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_transformers(kind: str, pool: str) -> None:
    model, state = random_bert(kind)
    tokens = padded_tokens(text_config(kind).pad_token_id)
    ids = torch.from_numpy(tokens).long()
    mask = (ids != text_config(kind).pad_token_id).long()
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask)
    hidden, weights = out.last_hidden_state, mask.unsqueeze(-1)
    expected = {
        "mean": (hidden * weights).sum(1) / weights.sum(1),
        "first": hidden[:, 0],
        "pooler": out.pooler_output,
    }[pool].numpy()
    config = our_config(kind, pool)
    ours, _ = our_features(config, state, tokens)
    assert expected.std() > 0.1
    assert np.abs(ours - expected).max() < 5e-6
    if pool == "mean":
        scanned, _ = our_features(changed(config, scan_layers=True), state, tokens)
        assert np.abs(scanned - ours).max() < 2e-6


def test_more_padding_changes_nothing_and_gradients_are_finite() -> None:
    config = our_config("roberta", "mean")
    _, state = random_bert("roberta")
    short, long = padded_tokens(1, 14), padded_tokens(1, 20)
    features, params = our_features(config, state, short)
    assert np.abs(our_features(config, state, long)[0] - features).max() < 2e-6
    empty = np.concatenate([short, np.full((1, 14), 1, np.int32)])  # a row of padding alone

    def loss(p: Any) -> jax.Array:
        return jnp.square(
            BertTextTransformer(config.text, config).apply({"params": p}, empty)
        ).sum()

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def dual_encoder(kind: str, vision: str) -> Any:
    image = {"clip": "CLIPVisionConfig", "vit": "ViTConfig"}[vision]
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        getattr(transformers, image)(**VISION), text_config(kind), projection_dim=24
    )
    return randomise(transformers.VisionTextDualEncoderModel(config))


@pytest.mark.parametrize(("kind", "vision"), [("bert", "clip"), ("xlm-roberta", "vit")])
def test_dual_encoder_folder(kind: str, vision: str, tmp_path: Path) -> None:
    model = dual_encoder(kind, vision)
    model.save_pretrained(tmp_path)
    clip = clip_jax.load(tmp_path)
    tokens = padded_tokens(text_config(kind).pad_token_id)
    pixels = np.random.default_rng(1).standard_normal((4, 32, 32, 3)).astype(np.float32)
    ids = torch.from_numpy(tokens).long()
    with torch.no_grad():
        out = model(
            input_ids=ids,
            attention_mask=(ids != text_config(kind).pad_token_id).long(),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        )
    # Two sizes of batch: the towers are applied one at a time.
    ours = [
        np.asarray(clip.model.apply({"params": clip.params}, x, method=f"encode_{tower}"))
        for tower, x in (("image", pixels), ("text", tokens))
    ]
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in ours)
    for mine, theirs in ((image, out.image_embeds), (text, out.text_embeds)):
        assert np.abs(mine - theirs.numpy()).max() < 2e-6
    logits = np.exp(float(clip.params["logit_scale"])) * image @ text.T
    assert np.abs(logits - out.logits_per_image.numpy()).max() < 1e-3
    assert clip.config.vision.pooler is (vision == "vit")
    assert clip.num_parameters == sum(p.numel() for p in model.parameters())


def test_older_names_of_the_towers() -> None:
    """Files of transformers 4: CLIP's tower one level deeper, ViT's blocks by other names."""
    clip = config_from_dual_encoder(dual_encoder("bert", "clip").config.to_dict())
    names = {rule.theirs for rule in dual_encoder_rules(clip, ["vision_model.vision_model.x"])}
    assert "vision_model.vision_model.encoder.layers.1.mlp.fc1.weight" in names
    vit = config_from_dual_encoder(dual_encoder("bert", "vit").config.to_dict())
    old = ["vision_model.encoder.layer.0.attention.attention.query.weight"]
    names = {rule.theirs for rule in dual_encoder_rules(vit, old)}
    assert old[0] in names
    assert "vision_model.encoder.layer.1.intermediate.dense.bias" in names


def test_what_cannot_be_honoured_is_named() -> None:
    document = json.loads(dual_encoder("bert", "clip").config.to_json_string())
    for part, key, value in (
        ("vision_config", "model_type", "swin"),
        ("text_config", "model_type", "gpt2"),
        ("text_config", "hidden_act", "relu"),
        ("text_config", "position_embedding_type", "relative_key"),
        ("text_config", "is_decoder", True),
        ("text_config", "hidden_size", "32"),
        ("text_config", "pad_token_id", "1"),
        ("vision_config", "pooler_act", "relu"),
        ("vision_config", "pooler_output_size", 16),
        ("vision_config", "image_size", [32, 40]),
        ("vision_config", "num_channels", 4),
    ):
        wrong = document | {part: document[part] | {key: value}}
        with pytest.raises(UserError, match=re.escape(f"{part}.{key}={value!r}")):
            config_from_dual_encoder(wrong)
    with pytest.raises(UserError, match="projection_dim='24'"):
        config_from_dual_encoder(document | {"projection_dim": "24"})
    with pytest.raises(UserError, match=r"text\.pool='mean'"):
        changed(ClipConfig(), text__pool="mean")
