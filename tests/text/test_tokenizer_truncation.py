"""Texts over the context: an error for a `Clip`, cut by training and by the evaluation programs."""

import numpy as np
import pytest

import clip_jax
from clip_jax.errors import UserError
from clip_jax.text.tokenizer import train_sentencepiece


@pytest.fixture(scope="module")
def clip():
    tokenizer = train_sentencepiece(["a red cat", "a blue dog"], vocab_size=300)
    size = {"image_size": 32, "context_length": 12}
    size |= {"vision": {"layers": 1}, "text": {"layers": 1}}
    return clip_jax.create("custom", tokenizer=tokenizer, vocab_size=tokenizer.vocab_size, **size)


def test_clip_refuses_or_cuts(clip):
    long = "a red cat and a blue dog"
    with pytest.raises(UserError, match=r"'a red cat and a blue dog' has \d+ ids.*=12.*truncate"):
        clip.encode_text(["a red cat", long])
    cut = clip.encode_text(["a red cat", long], truncate=True)
    assert cut.shape[0] == 2
    np.testing.assert_allclose(cut[0], clip.encode_text("a red cat")[0], atol=1e-6)
    with pytest.raises(UserError, match="truncate=True"):
        clip.zero_shot_classifier(["blue dog and red cat"], ["a red {} and a blue cat"])


def test_stored_option(clip):
    tokenizer = clip.tokenizer
    assert not tokenizer.truncate
    cutting = tokenizer.with_truncation(True)
    assert cutting("a red cat " * 9)[0, -1] == tokenizer.eos_id
    assert not tokenizer.truncate
    with pytest.raises(UserError, match="truncate=1"):
        tokenizer.with_truncation(1)
