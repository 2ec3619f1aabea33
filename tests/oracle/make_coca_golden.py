"""Makes tests/support/goldens/coca*.npz: tiny CoCas with random values, and what open_clip says.

Run it in an environment with open_clip_torch 3.3, torch 2.13 on the CPU, and transformers 4.55,
whose beam search open_clip uses and which later ones lack (never dependencies of ours), from the
root of the repository:

    python tests/oracle/make_coca_golden.py

Each file holds one model, every key a path:

    config                    JSON of the open_clip configuration
    state/NAME                every parameter, float16 (the values are exact in it)
    images, tokens            (B, S, S, 3) float16 NHWC, (B, L) int32
    image_features, text_features                 not normalised, evaluation mode
    aligned/text_features     with the class token's mask in the sequence's own order
    logits, caption_loss      of the decoder at every token; mean over labels that are not padding
    greedy                    (B, M) int32: generation with top_k=1, ended, then padded
    beam_K                    beam search of K beams, one group; beam_default: 6 beams, 3 groups
    filter/logits, filter/top_p_P, filter/top_k_K     probabilities that sampling draws from
"""

import json
import sys
from typing import Any

import numpy as np
import torch
from make_goldens import random_state, random_tokens, write
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss
from transformers import TopKLogitsWarper, TopPLogitsWarper

MAX_LENGTH, MIN_LENGTH = 12, 5
TEXT = {
    "context_length": 13,
    "vocab_size": 40,
    "width": 16,
    "heads": 2,
    "layers": 2,
    "embed_cls": True,
    "output_tokens": True,
}
DECODER = {"context_length": 13, "vocab_size": 40, "width": 16, "heads": 4, "layers": 2}
VISION = {"image_size": 24, "patch_size": 8, "layers": 2, "head_width": 8, "output_tokens": True}
MODELS: dict[str, dict[str, Any]] = {
    "coca": {
        "embed_dim": 16,
        "vision_cfg": {
            **VISION,
            "width": 24,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "attn_pooler_queries": 6,
        },
        "text_cfg": TEXT,
        "multimodal_cfg": DECODER,
    },
    "coca_class_token": {
        "embed_dim": 12,
        "vision_cfg": {**VISION, "width": 16},
        "text_cfg": TEXT,
        "multimodal_cfg": DECODER,
    },
}

# Chosen for captions that differ, of various lengths, with the padding's id among their words.
SEEDS = {"coca": 8, "coca_class_token": 20}


def generated(model: CoCa, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """Token ids of every kind of generation without chance."""
    vocab = TEXT["vocab_size"]
    settings = {
        "seq_len": MAX_LENGTH,
        "min_seq_len": MIN_LENGTH,
        "sot_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "fixed_output_length": True,
    }
    runs: dict[str, dict[str, Any]] = {
        "greedy": {"generation_type": "top_k", "top_k": 1},
        "beam_2": {"num_beams": 2, "num_beam_groups": 1},
        "beam_5": {"num_beams": 5, "num_beam_groups": 1},
        "beam_default": {},
    }
    ids = {name: model.generate(pixels, **settings, **run) for name, run in runs.items()}
    return {name: rows.numpy().astype(np.int32) for name, rows in ids.items()}


def filtered(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What sampling draws from, for logits of order one."""
    logits = torch.tensor(2 * rng.standard_normal((4, TEXT["vocab_size"]))).float()
    filters = {f"top_p_{p}": TopPLogitsWarper(p) for p in (0.01, 0.5, 0.9, 1.0)}
    filters |= {f"top_k_{k}": TopKLogitsWarper(k) for k in (1, 7)}
    kept = {name: warper(None, logits).softmax(-1).numpy() for name, warper in filters.items()}
    return {f"filter/{name}": x for name, x in (kept | {"logits": logits.numpy()}).items()}


def make(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """One golden file as a dictionary of arrays."""
    rng = np.random.default_rng(seed)
    model = CoCa(**settings).eval()
    state = random_state(model, 2.625, rng)
    state["text.positional_embedding"] *= 4  # or all captions repeat one word
    model.load_state_dict(state)
    batch, size = 6, settings["vision_cfg"]["image_size"]
    images = np.round(4 * rng.standard_normal((batch, size, size, 3))) / 2  # few levels, small file
    tokens = random_tokens(TEXT, batch, rng)
    pixels, ids = torch.tensor(images.transpose(0, 3, 1, 2)).float(), torch.tensor(tokens)
    golden = {
        "config": json.dumps(settings),
        "images": images.astype(np.float16),
        "tokens": tokens,
        **{f"state/{name}": value.numpy().astype(np.float16) for name, value in state.items()},
        **filtered(rng),
    }
    with torch.no_grad():
        golden["image_features"] = model.encode_image(pixels, normalize=False).numpy()
        golden["text_features"] = model.encode_text(ids, normalize=False).numpy()
        golden["logits"] = model(pixels, ids, output_labels=False)["logits"].numpy()
        out = model(pixels, ids.long())
        names = ("image_features", "text_features", "logits", "labels", "logit_scale")
        loss = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=1.0, pad_id=0)
        golden["caption_loss"] = loss(*(out[name] for name in names))[1].numpy()
        model.text.correct_cls_mask = True
        golden["aligned/text_features"] = model.encode_text(ids, normalize=False).numpy()
        model.text.correct_cls_mask = False
    return golden | generated(model, pixels)


if __name__ == "__main__":
    for name, settings in MODELS.items():
        golden = make(settings, SEEDS[name])
        write(name, golden)
        for kind in ("greedy", "beam_2", "beam_5", "beam_default"):
            print(kind, golden[kind].tolist(), file=sys.stderr)
