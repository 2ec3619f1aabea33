"""Captions: equal to open_clip's, to a plain beam search, and drawn from the right tokens."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from golden_models import COCA, Golden, golden
from PIL import Image
from tiny_clip import changed

from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.generation import (
    Generation,
    check_decoder,
    check_generation,
    filter_logits,
    generate_tokens,
)
from clip_jax.models.two_tower import TwoTower

pytestmark = pytest.mark.slow

VOCAB, START, END = 40, 38, 39
SETTINGS = Generation(start_id=START, eos_id=END, pad_id=0, max_length=12, min_length=5)


def generate(case: Golden, first_image: int = 0, seed: int = 0, **changes: Any) -> np.ndarray:
    settings = dataclasses.replace(SETTINGS, **changes)
    images = case.inputs[0]
    return np.asarray(
        generate_tokens(case.params, images, seed, first_image, case.config, settings)
    )


@functools.cache
def plain_logits(name: str) -> Any:
    """(images, tokens (B, L)) -> logits (B, V) after the last token, computed anew each time."""
    case = golden(name)
    model = TwoTower(case.config)
    apply = jax.jit(functools.partial(model.apply, method="caption_logits"))

    def logits(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Later tokens do not matter, so that one length serves all."""
        padded = np.full((len(tokens), SETTINGS.max_length), 7)
        padded[:, : tokens.shape[1]] = tokens
        return np.asarray(apply({"params": case.params}, images, padded))[:, tokens.shape[1] - 1]

    return logits


def plain_beam_search(name: str, image: np.ndarray, beams: int, log: bool) -> list[int]:
    """Beam search of one image as a text book writes it, with lists."""
    logits = plain_logits(name)
    open_beams, ended = [(0.0, [START])], []
    for length in range(1, SETTINGS.max_length):
        tokens = np.array([tokens for _, tokens in open_beams])
        scores = logits(np.repeat(image[None], len(tokens), axis=0), tokens).astype(np.float64)
        if log:
            scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        if length < SETTINGS.min_length:
            scores[:, END] = -np.inf
        longer = [
            (total + scores[row, word], [*tokens, word])
            for row, (total, tokens) in enumerate(open_beams)
            for word in range(VOCAB)
        ]
        longer.sort(key=lambda beam: -beam[0])
        best = longer[: 2 * beams]
        ended += [(s / len(t), t) for s, t in best[:beams] if t[-1] == END]
        ended = sorted(ended, key=lambda beam: -beam[0])[:beams]
        open_beams = [(s, t) for s, t in best if t[-1] != END][:beams]
        if len(ended) == beams and ended[-1][0] >= best[0][0] / (length + 1):
            break  # transformers' guess that nothing better will come
    else:
        ended += [(s / len(t), t) for s, t in open_beams]
    caption = max(ended, key=lambda beam: beam[0])[1]
    return caption + [0] * (SETTINGS.max_length - len(caption))


class Letters:
    """A tokenizer of the golden vocabulary: ids 1 to 26 are letters."""

    context_length, vocab_size, eos_id, pad_id = 13, VOCAB, END, 0

    def __call__(self, texts: Any, truncate: bool | None = None) -> np.ndarray:
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text) + 2] = [START, *(ord(letter) - 96 for letter in text), END]
        return rows

    def decode(self, ids: Any) -> str:
        body = [int(i) for i in ids[1:]]
        body = body[: body.index(END)] if END in body else body
        return "".join(chr(96 + i) if 0 < i < 27 else "?" for i in body)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", COCA)
def test_greedy_is_open_clip_s(name: str, scan_layers: bool) -> None:
    case = golden(name, scan_layers=scan_layers)
    assert np.array_equal(generate(case, method="greedy"), case.arrays["greedy"])


@pytest.mark.parametrize(
    ("theirs", "beams", "scan_layers"),
    [("beam_2", 2, False), ("beam_5", 5, True), ("beam_default", 2, False)],
)
@pytest.mark.parametrize("name", COCA)
def test_beam_search_is_open_clip_s(name: str, theirs: str, beams: int, scan_layers: bool) -> None:
    """Its default, 6 beams in 3 groups with nothing to tell the groups apart, is that of 2."""
    case = golden(name, scan_layers=scan_layers)
    ours = generate(case, method="beam", beams=beams, beam_scores="logit")
    assert np.array_equal(ours, case.arrays[theirs])


@pytest.mark.parametrize(("name", "beams"), [("coca", 1), ("coca", 6), ("coca_class_token", 3)])
def test_beam_search_is_a_plain_one(name: str, beams: int) -> None:
    case = golden(name)
    ours = generate(case, method="beam", beams=beams)
    images = case.inputs[0]
    assert ours.tolist() == [plain_beam_search(name, image, beams, log=True) for image in images]


@pytest.mark.parametrize("method", ["top_p", "top_k"])
def test_what_sampling_draws_from(method: str) -> None:
    arrays = golden("coca").arrays
    found = [name for name in arrays if name.startswith(f"filter/{method}_")]
    assert len(found) >= 2
    for name in found:
        value = name.rsplit("_", 1)[1]
        number = float(value) if method == "top_p" else int(value)
        settings = dataclasses.replace(SETTINGS, method=method, **{method: number})
        kept = jax.nn.softmax(filter_logits(arrays["filter/logits"], settings), axis=-1)
        assert np.array_equal(kept > 0, arrays[name] > 0)
        assert np.abs(kept - arrays[name]).max() < 1e-6


def test_draws_have_the_probabilities_of_the_model() -> None:
    """The first words of many captions of one image: top-p, then temperature."""
    case, draws = golden("coca"), 4000
    images = np.repeat(case.inputs[0][:1], draws, axis=0)
    settings = dataclasses.replace(SETTINGS, method="top_p", top_p=0.8, temperature=2.0)
    settings = dataclasses.replace(settings, max_length=3, min_length=2)
    tokens = generate_tokens(case.params, images, 1, 0, case.config, settings)
    counts = np.bincount(np.asarray(tokens)[:, 1], minlength=VOCAB)
    logits = np.array(plain_logits("coca")(images[:1], np.array([[START]])))
    logits[:, END] = -np.inf
    expected = np.asarray(jax.nn.softmax(filter_logits(logits, settings) / 2.0, axis=-1))[0]
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    assert 3 < kept.sum() < VOCAB
    errors = np.abs(counts / draws - expected)[kept]
    assert (errors < 4.5 * np.sqrt(expected[kept] / draws)).all()


def test_a_draw_depends_on_seed_and_image_alone() -> None:
    case = golden("coca")
    whole = generate(case, method="top_p", top_p=1.0)
    assert np.array_equal(whole, generate(case, method="top_p", top_p=1.0))
    assert not np.array_equal(whole, generate(case, method="top_p", top_p=1.0, seed=1))
    rest = dataclasses.replace(case, arrays=case.arrays | {"images": case.arrays["images"][2:]})
    assert np.array_equal(whole[2:], generate(rest, first_image=2, method="top_p", top_p=1.0))


@pytest.mark.parametrize("method", ["top_p", "top_k"])
def test_lengths(method: str) -> None:
    """The end of text comes after `min_length` tokens and then only padding."""
    captions = generate(golden("coca_class_token"), method=method, min_length=8, max_length=10)
    assert captions.shape == (6, 10)
    assert (captions[:, 0] == START).all()
    assert (captions[:, 1:8] != END).all()
    for caption in captions.tolist():
        if END in caption:
            assert set(caption[caption.index(END) + 1 :]) <= {0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "beams"}, "method='beams': choose one of beam, greedy, top_p, top_k"),
        ({"beam_scores": "p"}, "beam_scores='p': choose one of log_probability, logit"),
        ({"max_length": 14}, "max_length=14: must be 2 to 13"),
        ({"min_length": 12}, "min_length=12: must be 1 to 11"),
        ({"beams": 0}, "beams=0: must be 1 to 20"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"top_p": 1.5}, "top_p=1.5: must be 0 to 1"),
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"temperature": float("nan")}, "temperature=nan: must be above 0"),
        ({"temperature": "1"}, "temperature='1': must be a number"),
        ({"max_length": "9"}, "max_length='9': must be a whole number"),
        ({"max_length": None}, "max_length=None: must be a whole number"),
        ({"min_length": 4.5}, r"min_length=4\.5: must be a whole number"),
        ({"beams": True}, "beams=True: must be a whole number"),
        ({"top_p": [0.5]}, r"top_p=\[0\.5\]: must be a number"),
        ({"method": ["beam"]}, r"method=\['beam'\]: choose one of"),
        ({"start_id": END}, "the tokenizer has no start-of-text token"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_generation(dataclasses.replace(SETTINGS, **changes), golden("coca").config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be a whole number, 1 or more"),
        ({"seed": 1.5}, "seed=1.5: must be a whole number"),
        ({"seed": 2**31}, "seed=2147483648: must be a whole number, -2147483648 to 2147483647"),
        ({"images": None}, "images=None: must be an image"),
        ({"images": {"a": 1}}, "is a dict; give a list of images"),
    ],
)
def test_arguments_of_generate(arguments: dict[str, Any], message: str) -> None:
    case = golden("coca")
    clip = Clip(case.config, case.params, tokenizer=Letters())
    with pytest.raises(UserError, match=message):
        clip.generate(**{"images": [], "max_length": 12} | arguments)


def test_models_that_cannot_generate() -> None:
    with pytest.raises(
        UserError, match=r"ViT-B-32 has no caption decoder; .*coca_ViT-B-32, coca_V"
    ):
        check_decoder(get_architecture("ViT-B-32"))
    with pytest.raises(UserError, match="sees later tokens"):
        check_decoder(golden("coca", text__causal=False).config)


def test_clip_generate() -> None:
    """Batches over all devices, padded with empty images, give what each image gives alone."""
    case = golden("coca", image_mean=(0.5,) * 3, image_std=(0.3,) * 3)
    clip = Clip(case.config, case.params, tokenizer=Letters())
    images = np.random.default_rng(0).integers(0, 256, (11, 24, 24, 3), np.uint8)
    for changes in ({"method": "top_p", "top_p": 1.0}, {"method": "beam", "beams": 3}):
        settings = dataclasses.replace(SETTINGS, **changes)
        tokens = generate_tokens(case.params, images, 3, 0, case.config, settings)
        expected = [Letters().decode(row) for row in np.asarray(tokens)]
        assert len(set(expected)) > 3
        got = clip.generate(images, max_length=12, batch_size=8, seed=3, **changes)
        assert got == expected
    one = clip.generate(Image.fromarray(images[0]), max_length=12, beams=3)
    assert one == expected[:1]
    assert clip.generate([], max_length=12) == []


def test_clip_generate_says_what_is_missing() -> None:
    case = golden("coca")
    with pytest.raises(UserError, match="has no tokenizer"):
        Clip(case.config, case.params).generate([])
    without = changed(case.config, decoder=None)
    with pytest.raises(UserError, match="has no caption decoder"):
        Clip(without, case.params, tokenizer=Letters()).generate([])
