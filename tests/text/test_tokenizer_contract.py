"""Contract of every tokenizer: rows, truncation, copies, names of special tokens as text."""

import pickle

import numpy as np
import pytest
from tiny_clip import tiny
from tokenizer_files import (
    BPE_FILE,
    CONFIG,
    TEXTS,
    bert_files,
    clip_files,
    full_clip_files,
    gemma_files,
    roberta_files,
    siglip_files,
    unigram_json,
    word_level_json,
    write,
    xlm_files,
)

from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.text.rows import Tokenizer
from clip_jax.text.tokenizer import (
    get_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_from_files,
    train_sentencepiece,
)

LOW = train_sentencepiece([*TEXTS, "naïve 你好"], 400)
OPEN_CLIP = {
    "hf_tokenizer_name": "bert",
    "context_length": 9,
    "tokenizer_kwargs": {"strip_sep_token": True, "clean": "canonicalize"},
}
CLIP_NAMES = "<|endoftext|> <|startoftext|>x<|endoftext|>"
# Name -> (its files or itself, names of special tokens that its files know).
KINDS = {
    "openai": (lambda: get_tokenizer(BPE_FILE), CLIP_NAMES),
    "clip": (clip_files, CLIP_NAMES),
    "clip of bytes": (full_clip_files, CLIP_NAMES),
    "bert": (lambda: bert_files("sep", "cls"), "[SEP] a[CLS] [PAD]"),
    "roberta": (roberta_files, "<s> a</s>b <pad>"),
    "unigram": (lambda: {"tokenizer.json": unigram_json(special=True)}, "</s> a</s>b <pad><mask>"),
    "added": (lambda: {"tokenizer.json": unigram_json(special=False)}, "</s> a</s>b <pad>"),
    "words": (lambda: {"tokenizer.json": word_level_json()}, "[SEP] cat [PAD]"),
    "gemma": (gemma_files, "<eos> a<eos>b <pad><bos>"),
    "siglip": (siglip_files, "</s> a</s>b <pad>"),
    "xlm": (xlm_files, "</s> <pad>"),
    "trained": (lambda: LOW, "</s> a</s>b <pad><s>"),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, tmp_path_factory):
    """(tokenizer, names of special tokens)."""
    make, special = KINDS[request.param]
    if request.param == "openai" and not BPE_FILE.is_file():
        pytest.skip(f"OpenAI's merges file is not at {BPE_FILE}")
    made = make()
    if isinstance(made, dict):
        made = get_tokenizer(write(tmp_path_factory.mktemp("kind"), made))
    return made, special


def test_special_strings_stay_text(kind):
    ours, text = kind
    ours = ours.with_context_length(80)
    ordinary, row = ours(["cat", text]).tolist()
    end = row.index(ours.eos_id)
    prefix = list(ours.prefix_ids)
    # EOS stands where the text ends and, but for padding of the same id, nowhere else.
    assert set(row[end + 1 :]) <= {ours.pad_id}
    assert {ours.eos_id, ours.pad_id, *prefix}.isdisjoint(row[len(prefix) : end])
    assert ordinary[: len(prefix)] == row[: len(prefix)] == prefix
    assert end > len(prefix) + 1


def test_rows(kind):
    ours, _ = kind
    assert ours([]).shape == (0, ours.context_length)
    assert ours("cat").dtype == np.int32
    assert 0 <= ours(TEXTS).min() <= ours(TEXTS).max() < ours.vocab_size
    assert ours.decode([*ours.prefix_ids, ours.eos_id, ours.pad_id]) == ""
    with pytest.raises(UserError, match="context_length=1: accepted is a whole number >= 2"):
        ours.with_context_length(1)
    with pytest.raises(UserError, match="truncate=1"):
        ours.with_truncation(1)


def test_long_texts_are_cut_or_refused(kind):
    ours, _ = kind
    long = "cat " * 50
    cutting = ours.with_context_length(9).with_truncation(True)
    assert not ours.truncate
    row = cutting(long)[0]
    assert (len(row), row[-1]) == (9, ours.eos_id)
    assert row[:-1].tolist() == ours.with_context_length(300)(long)[0, :8].tolist()
    assert cutting("\ud800 cat" + "cat " * 25_000)[0, -1] == ours.eos_id
    message = r"'cat cat .*…' has \d+ ids, more than context_length=9: .*truncate=True"
    with pytest.raises(UserError, match=message):
        cutting(long, truncate=False)


def test_copies_are_equal(kind, tmp_path):
    ours = kind[0].with_context_length(12).with_truncation(True)
    assert isinstance(ours, Tokenizer)
    save_tokenizer(ours, tmp_path / "saved")
    texts = [*TEXTS, "naïve 你好", "cat " * 50]
    for copy in (
        load_tokenizer(tmp_path / "saved"),
        get_tokenizer(tmp_path / "saved"),
        pickle.loads(pickle.dumps(ours)),
        tokenizer_from_files(*ours.to_files()),
    ):
        assert copy.to_files() == ours.to_files()
        assert (copy.context_length, copy.vocab_size) == (12, ours.vocab_size)
        np.testing.assert_array_equal(copy(texts), ours(texts))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", b"b"], r"texts\[1\]=b'b': is of type bytes; give a list of strings"),
        ([None], r"texts\[0\]=None: is missing"),
        ({"a": 1}, "is a dict"),
        (None, "texts=None"),
    ],
)
def test_what_is_no_list_of_texts(texts, message):
    with pytest.raises(UserError, match=message):
        LOW(texts)


def test_marks_of_hidden_names_do_not_reveal_them(tmp_path):
    files = {"tokenizer.json": unigram_json(special=True)}
    row = get_tokenizer(write(tmp_path, files))("\ufdd0\ufdd1\ufdd2</s>")[0].tolist()
    assert row.index(1) == len([i for i in row if i > 1])


def test_clipa_strips_the_end_from_cut_rows_too(tmp_path):
    config = {"open_clip_config.json": {"model_cfg": {"text_cfg": OPEN_CLIP}}}
    clipa = get_tokenizer(write(tmp_path, bert_files() | config))
    plain = get_tokenizer(write(tmp_path / "plain", bert_files())).with_context_length(9)
    assert (clipa.context_length, clipa.cleaning, clipa.pad_id) == (9, "canonicalize", 0)
    texts = ["A cat", "cat " * 9]
    wanted = plain(texts, truncate=True)
    assert (wanted == plain.eos_id).sum() == 2
    wanted[wanted == plain.eos_id] = 0
    np.testing.assert_array_equal(clipa(texts, truncate=True), wanted)
    assert clipa.decode(clipa("a cat")[0]) == plain.decode(plain("a cat")[0]) == "a cat"
    cased = {CONFIG: {"tokenizer_class": "BertTokenizer", "do_lower_case": False}}
    assert get_tokenizer(write(tmp_path / "plain", cased))("CAT")[0, 1] == 1  # unknown


def test_a_clip_refuses_or_cuts():
    clip = tiny(vocab_size=LOW.vocab_size)
    clip = Clip(clip.config, clip.params, LOW.with_context_length(12))
    long = "a cat on a mat and a cat on a mat"
    with pytest.raises(UserError, match=rf"'{long}' has \d+ ids.*=12.*truncate"):
        clip.encode_text(["a cat", long])
    cut = clip.encode_text(["a cat", long], truncate=True)
    np.testing.assert_allclose(cut[0], clip.encode_text("a cat")[0], atol=1e-6)
    with pytest.raises(UserError, match="truncate=True"):
        clip.zero_shot_classifier(["cat and a cat"], ["a cat {} and a cat"])
