"""Twenty thousand strings a tokenizer: ours equal to the rules as written and to transformers'.

One string of 100 kB goes with each. transformers has no ftfy and no HTML unescaping, so where the
cleaning differs it gets our cleaned text.
"""

import html
import io
import json
import unicodedata
from pathlib import Path

import ftfy
import numpy as np
import pytest
import sentencepiece
from places import SHARED_DATA
from textbook_tokenizer import PHRASES, SCRIPTS, TextbookClip, random_strings

from clip_jax.text.cleaning import clean_text
from clip_jax.text.clip_bpe import BPE_FILE_NAME
from clip_jax.text.tokenizer import (
    SentencePieceTokenizer,
    get_tokenizer,
    load_huggingface_tokenizer,
    to_huggingface_files,
)

BPE_FILE = SHARED_DATA / "clip_bpe" / BPE_FILE_NAME
COUNT = 20_010
LONG = ("naïve cats & 你好 " * 6000)[:100_000]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip_bpe():
    if not BPE_FILE.is_file():
        pytest.skip(f"OpenAI's merges file is not at {BPE_FILE}")
    return get_tokenizer(BPE_FILE).with_truncation(True)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def differing(
    ours, theirs, strings: list[str], texts_for_them: list[str] | None = None
) -> list[tuple[str, list[int], list[int]]]:
    """(text, our row, their row) where rows of 200 ids differ.

    `texts_for_them`: what transformers gets instead.
    """
    tokenizer = ours.with_context_length(200).with_truncation(True)
    rows = tokenizer(strings)
    theirs.padding_side = "right"
    given = texts_for_them or strings
    expected = theirs(given, padding="max_length", max_length=200, truncation=True)["input_ids"]
    wrong = np.flatnonzero((rows != np.asarray(expected)).any(axis=1))
    return [(strings[i], rows[i].tolist(), expected[i]) for i in wrong]


def test_repair_equals_ftfy_and_unescape():
    for text in random_strings(COUNT, seed=1):
        slow = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
        assert clean_text(text, "whitespace") == slow, text


def test_clip_equals_the_rules(clip_bpe):
    strings = [*random_strings(COUNT, seed=2), LONG, "a" * 3000]
    textbook = TextbookClip(clip_bpe)
    rows = clip_bpe(strings)
    for text, row in zip(strings, rows, strict=True):
        assert row.tolist() == textbook(text), text
    parsing = type(clip_bpe)(BPE_FILE.read_bytes(), truncate=True, special_strings="parse")
    for text in ("<|endoftext|> x", "a<|STARTOFTEXT|>b", "<|endoftext|", "'<|endoftext|>'s"):
        assert parsing(text)[0].tolist() == textbook(text), text


def test_clip_equals_transformers(clip_bpe, transformers, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(
        write(tmp_path / "clip", to_huggingface_files(clip_bpe))
    )
    strings = [*random_strings(COUNT, seed=3), LONG]
    cleaned = [clean_text(text, "lower") for text in strings]
    # transformers composes characters once more, after our lower-casing: "İ" before another mark.
    kept = [i for i, text in enumerate(cleaned) if unicodedata.is_normalized("NFC", text)]
    assert len(kept) >= 20_000
    strings, cleaned = [strings[i] for i in kept], [cleaned[i] for i in kept]
    ours = load_huggingface_tokenizer(tmp_path / "clip")
    assert ours.pad_id == 49407
    assert differing(ours, theirs, strings, cleaned) == []


@pytest.fixture(scope="module")
def siglip_model() -> bytes:
    """A small unigram model with SigLIP's special ids and its normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(random_strings(3000, seed=4, controls=False)),
        model_writer=model,
        vocab_size=1500,
        character_coverage=0.98,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def test_siglip_equals_transformers(siglip_model, transformers, tmp_path):
    pytest.importorskip("google.protobuf")
    ours = SentencePieceTokenizer(siglip_model, cleaning="siglip", pad_id=1)
    theirs = transformers.AutoTokenizer.from_pretrained(
        write(tmp_path / "siglip", to_huggingface_files(ours))
    )
    assert type(theirs).__name__ == "SiglipTokenizer"
    strings = [*random_strings(COUNT, seed=5), LONG]
    # transformers encodes "<unk>" before each text and cuts it off: that can break a tie between
    # two segmentations of one score the other way, "η ηη" for "ηη η".
    ties = differing(ours, theirs, strings)
    assert len(ties) < 40
    for text, row, expected in ties:
        assert sorted(row) == sorted(expected), text
    loaded = load_huggingface_tokenizer(tmp_path / "siglip")
    np.testing.assert_array_equal(loaded(strings[:99]), ours(strings[:99]))


def wordpiece_vocabulary() -> bytes:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({c for script in SCRIPTS.values() for c in script.lower() if not c.isspace()})
    words = sorted({w.lower() for phrase in PHRASES for w in phrase.split() if w.isalpha()})
    tokens = [*special, *letters, *(f"##{c}" for c in letters), *words, "##ing", "##at"]
    return "".join(f"{token}\n" for token in dict.fromkeys(tokens)).encode()


@pytest.mark.parametrize("lower", [True, False])
def test_wordpiece_equals_transformers(lower, transformers, tmp_path):
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "model_max_length": 64}
    folder = write(
        tmp_path,
        {"vocab.txt": wordpiece_vocabulary(), "tokenizer_config.json": json.dumps(config).encode()},
    )
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    ours = load_huggingface_tokenizer(folder)
    assert (ours.context_length, ours.eos_id, ours.pad_id) == (64, 3, 0)
    assert differing(ours, theirs, [*random_strings(COUNT, seed=6), LONG]) == []


def test_roberta_equals_transformers(transformers, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(random_strings(3000, seed=7), trainer)
    spec = json.loads(trained.to_str())["model"]
    merges = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in spec["merges"])
    first = write(
        tmp_path / "slow",
        {
            "vocab.json": json.dumps(spec["vocab"]).encode(),
            "merges.txt": merges.encode(),
            "tokenizer_config.json": b'{"tokenizer_class": "RobertaTokenizer"}',
        },
    )
    theirs = transformers.AutoTokenizer.from_pretrained(first)
    theirs.save_pretrained(tmp_path / "fast")
    assert (tmp_path / "fast" / "tokenizer.json").is_file()
    strings = [*random_strings(COUNT, seed=8), LONG]
    for folder in (first, tmp_path / "fast"):
        ours = load_huggingface_tokenizer(folder)
        assert (ours.eos_id, ours.pad_id) == (2, 1)
        assert differing(ours, theirs, strings) == []


def test_xlm_roberta_equals_transformers(transformers, tmp_path):
    model = io.BytesIO()
    strings = random_strings(3000, seed=9, controls=False)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(strings),
        model_writer=model,
        vocab_size=1500,
        character_coverage=0.98,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    files = {
        "sentencepiece.bpe.model": model.getvalue(),
        "tokenizer_config.json": b'{"tokenizer_class": "XLMRobertaTokenizer"}',
    }
    folder = write(tmp_path / "slow", files)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "fast")
    fuzz = [*random_strings(COUNT, seed=10), LONG]
    fast = load_huggingface_tokenizer(tmp_path / "fast")
    assert (fast.eos_id, fast.pad_id) == (2, 1)
    assert differing(fast, theirs, fuzz) == []
    # transformers turns the model into one of `tokenizers`; SentencePiece itself handles controls
    # and ties of scores its own way, so plain words are compared.
    slow = load_huggingface_tokenizer(folder)
    words = [f"{a} {b}" for a, b in zip(PHRASES[:12] * 9, PHRASES[3:12] * 12, strict=True)]
    assert slow.vocab_size == fast.vocab_size
    assert differing(slow, theirs, words) == []
