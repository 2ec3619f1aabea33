"""Building ImageNet's classifier against the bare encoding of its prompts, and against padding all.

    python benchmarks/zero_shot_classifier.py --classes=1000

ImageNet's class names in OpenAI's 80 templates, a text tower of ViT-B/32's shape with random
weights, float32. In turns: `clip.zero_shot_classifier` from texts to the classifier; the compiled
encoder alone, on the token batches that it makes; and on batches padded to the whole context.
Prints one JSON object with the medians of the ratios and their limits. All 1,000 classes take an
hour on two cores; the default is a part of them, evenly spaced. Needs CLIP's merges file
(CLIP_JAX_BPE).
"""

import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

import clip_jax
from clip_jax.clip import Clip
from clip_jax.encoding import embed_tokens
from clip_jax.evaluation.prompts import get_classes, get_templates
from clip_jax.evaluation.zero_shot import prompts_classifier, prompts_of_classes
from clip_jax.hosts.memory import keep_freed_memory
from clip_jax.models.text import needed_tokens
from clip_jax.sharding import make_mesh, replicated
from clip_jax.text.lengths import by_length

BATCH_SIZE = 256
LIMITS = {"over_bare": 1.05, "gain_over_padding": 1.5, "difference": 1e-5}

_CLASSES = flags.DEFINE_integer("classes", 20, "Of ImageNet's 1,000.", 1, 1000)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns, after one that warms up.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "File for the JSON, besides standard output.")


class Bare:
    """The compiled encoder on token batches that are already on the device."""

    def __init__(self, clip: Clip, batches: Sequence[np.ndarray]) -> None:
        mesh = make_mesh(devices=jax.local_devices()[:1])
        self._config, self._out = clip.config, replicated(mesh)
        self._mesh = mesh
        self._params = jax.device_put(clip.params, self._out)
        self._sizes = [len(batch) for batch in batches]
        self._batches = [jax.device_put(_full(batch), self._out) for batch in batches]

    def encode(self) -> np.ndarray:
        """Returns the embeddings of all batches in their order, float32 (N, D)."""
        found = []
        with jax.set_mesh(self._mesh):
            for batch in self._batches:
                found.append(
                    embed_tokens(self._params, batch, self._config, True, out_sharding=self._out)
                )
            parts = zip(found, self._sizes, strict=True)
            return np.concatenate([np.asarray(part)[:size] for part, size in parts])


def _full(batch: np.ndarray) -> np.ndarray:
    """Returns a batch with rows of zeros up to a power of two, as `Clip` encodes it."""
    rows = min(BATCH_SIZE, 1 << (len(batch) - 1).bit_length())
    return np.pad(batch, ((0, rows - len(batch)), (0, 0)))


def seconds(work: Any) -> float:
    """Returns how long a call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main(argv: list[str]) -> None:
    """Measures, and prints the object."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    keep_freed_memory()  # as our programs do
    clip = clip_jax.create("ViT-B-32", tokenizer="openai")
    every = get_classes("imagenet1k")
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, _CLASSES.value).round().astype(int)]
    names = [each.names[:1] for each in chosen]
    prompts = prompts_of_classes(names, get_templates("openai"))
    texts = [text for of_class in prompts for text in of_class]
    tokens = np.unique(clip.tokenizer(texts), axis=0)
    context = tokens.shape[1]
    batches = list(by_length(needed_tokens(tokens, clip.config.text), context, BATCH_SIZE))
    bare = Bare(clip, [tokens[rows, :length] for rows, length in batches])
    whole = clip.tokenizer(texts)
    padded = Bare(clip, [whole[i : i + BATCH_SIZE] for i in range(0, len(whole), BATCH_SIZE)])

    found = clip.zero_shot_classifier(names)  # compiles, as the next two do
    row_of = {text: row for row, text in enumerate(texts)}
    embeds = padded.encode()
    expected = prompts_classifier(lambda asked: embeds[[row_of[text] for text in asked]], prompts)
    bare.encode()
    turns = []
    for _ in range(_ROUNDS.value):
        ours = seconds(lambda: clip.zero_shot_classifier(names))
        turns.append((ours, seconds(bare.encode), seconds(padded.encode)))
    result = {
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "classes": len(names),
        "prompts": len(texts),
        "different_prompts": len(tokens),
        "batches": {
            str(n): sum(1 for _, m in batches if m == n) for n in sorted({m for _, m in batches})
        },
        "seconds": {
            name: round(statistics.median(column), 2)
            for name, column in zip(
                ("ours", "bare", "padded"), zip(*turns, strict=True), strict=True
            )
        },
        "over_bare": round(statistics.median(a / b for a, b, _ in turns), 3),
        "ratios_over_bare": [round(a / b, 3) for a, b, _ in turns],
        "gain_over_padding": round(statistics.median(c / a for a, _, c in turns), 2),
        "difference": float(np.abs(found - expected).max()),
        "limits": LIMITS,
    }
    result["kept"] = (
        result["over_bare"] <= LIMITS["over_bare"]
        and result["gain_over_padding"] >= LIMITS["gain_over_padding"]
        and result["difference"] <= LIMITS["difference"]
    )
    text = json.dumps(result, indent=1)
    print(text)
    if _OUTPUT.value:
        with open(_OUTPUT.value, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    app.run(main)
