"""OpenAI's tokenizer, training of SentencePiece, look-up by name, and what a user can get wrong."""

import gzip
import json
import logging
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from places import REPOSITORY
from textbook_tokenizer import TextbookClip
from tokenizer_files import BPE_FILE, piece_model

from clip_jax.errors import UserError
from clip_jax.text import merges_file as bpe
from clip_jax.text.clip_bpe import ClipBpeTokenizer
from clip_jax.text.merges_file import find_bpe_file
from clip_jax.text.sentencepiece_model import SentencePieceTokenizer, train_sentencepiece
from clip_jax.text.tokenizer import (
    TOKENIZER_CONFIG_NAME,
    get_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_from_files,
)

# OpenAI's own tokenizer with ftfy 6.3.1.
GOLDENS = r"""
"a photo of a cat"  [49406 320 1125 539 320 2368 49407]
"Hello World!"  [49406 3306 1002 256 49407]
"Hello   World!!  "  [49406 3306 1002 748 49407]
"a diagram"  [49406 320 22697 49407]
"a dog"  [49406 320 1929 49407]
"itap of a snake."  [49406 529 2728 539 320 8798 269 49407]
"don't WON'T 3.14159"  [49406 847 713 1749 713 274 269 272 275 272 276 280 49407]
"caf\u00e9 na\u00efve \u2014 it's 2021, I'll go"  [49406 15304 1097 35689 563 2005 585 568 273 271 273 272 267 328 1342 861 49407]
"&lt;b&gt;bold&lt;/b&gt;"  [49406 283 321 285 8911 34308 321 285 49407]
"&amp;lt;3"  [49406 283 274 49407]
"\u4f60\u597d \ud83d\ude00"  [49406 47466 254 29290 377 7334 49407]
"\ud55c\uad6d\uc5b4 \u0939\u093f\u0928\u094d\u0926\u0940"  [49406 15197 250 31871 255 31625 368 29446 26721 26090 19389 29552 25751 49407]
"\u201csmart quotes\u201d \u2026"  [49406 257 4115 5808 257 959 49407]
"\u0130stanbul"  [49406 328 16384 11231 49407]
"na\u00efve\u0301"  [49406 1097 35689 85 4166 49407]
"\u00a0a\u2003b\u001cc"  [49406 320 2162 49407]
"A photo of a GREEN_APPLE, 100%!"  [49406 320 1125 539 320 1901 318 3055 267 272 271 271 35070 49407]
""  [49406 49407]
"""  # noqa: E501
SPECIAL_GOLDEN = ("<|endoftext|> x", [49406, 49407, 343, 49407])


def goldens():
    for line in GOLDENS.strip().splitlines():
        text, ids = line.rsplit("  [", 1)
        yield json.loads(text), [int(i) for i in ids.rstrip("]").split()]


CAPTIONS = [
    *("greek small letter omega", "greek small letter alpha", "latin capital letter a with grave"),
    *("latin small letter b", "rightwards arrow", "leftwards arrow", "roman numeral seven"),
    *(f"sign number {i} of the greek and latin letters" for i in range(22)),
]


@pytest.fixture(scope="module")
def clip_bpe():
    if not BPE_FILE.is_file():
        pytest.skip(f"OpenAI's merges file is not at {BPE_FILE}")
    return get_tokenizer(BPE_FILE)


@pytest.fixture(scope="module")
def pieces():
    return train_sentencepiece(CAPTIONS, vocab_size=400, context_length=16)


# --- OpenAI's byte-pair tokenizer ---------------------------------------------------------------


def test_bpe_goldens(clip_bpe):
    for text, ids in goldens():
        row = clip_bpe(text)
        assert row.shape == (1, 77)
        assert row[0, : len(ids)].tolist() == ids, text
        assert not row[0, len(ids) :].any()


def test_bpe_special_string_in_a_caption(clip_bpe):
    text, openai_ids = SPECIAL_GOLDEN
    row = clip_bpe(text)[0].tolist()
    assert row.count(49407) == row.count(49406) == 1
    spec, files = clip_bpe.to_files()
    spec["options"]["special_strings"] = "parse"
    parsing = tokenizer_from_files(spec, files)
    assert parsing(text)[0, : len(openai_ids)].tolist() == openai_ids
    spec["options"]["special_strings"] = "both"
    with pytest.raises(UserError, match="special_strings='both'"):
        tokenizer_from_files(spec, files)


def test_bpe_merges_equal_the_naive_rule(clip_bpe):
    textbook = TextbookClip(clip_bpe)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aabcdeehilnorstu"), n)) for n in rng.integers(1, 40, 300)]
    for piece in [*words, "a" * 257, "ab" * 99, "aaab" * 50, "hahaha" * 20, "é" * 64, "!" * 200]:
        ids = np.frombuffer(clip_bpe._encode_piece(piece), np.int32).tolist()
        assert ids == textbook.merge(piece), piece


def test_bpe_truncation(clip_bpe):
    long = "cat " * 100
    cutting = clip_bpe.with_truncation(True)
    assert cutting(long)[0].tolist() == [49406, *[2368] * 75, 49407]
    assert cutting.with_context_length(4)(long)[0].tolist() == [49406, 2368, 2368, 49407]
    fits = "cat " * 75
    np.testing.assert_array_equal(cutting(fits), clip_bpe(fits))


def test_bpe_decode(clip_bpe):
    ids = clip_bpe("A photo of  naïve 你好 & cats!")[0]
    assert clip_bpe.decode(ids) == "a photo of naïve 你好 & cats !"
    assert clip_bpe.decode([49406, 49407]) == ""


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Path of the merges file in a cache that is empty; nothing else has it."""
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(bpe.BPE_FILE_VARIABLE, raising=False)
    monkeypatch.setattr(bpe.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bpe, "BPE_FILE_URL", (tmp_path / "served.gz").as_uri())
    return tmp_path / "cache" / bpe.BPE_FILE_NAME


def test_find_bpe_file(clip_bpe, cached, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("CLIP_JAX_CACHE", str(cached.parent))
    monkeypatch.setenv(bpe.BPE_FILE_VARIABLE, str(BPE_FILE))
    assert find_bpe_file() == BPE_FILE
    assert get_tokenizer("ViT-B-32")("a dog")[0, 2] == 1929
    monkeypatch.delenv(bpe.BPE_FILE_VARIABLE)
    package, beside = tmp_path / "site" / "open_clip", tmp_path / "weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('found, not imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    for folder in (package, cached.parent, beside):  # the later ones are looked at first
        folder.mkdir(exist_ok=True)
        (folder / bpe.BPE_FILE_NAME).write_bytes(BPE_FILE.read_bytes())
        assert find_bpe_file(beside=beside) == folder / bpe.BPE_FILE_NAME
    assert find_bpe_file() == cached


def test_download_of_the_bpe_file(clip_bpe, cached, tmp_path):
    served = tmp_path / "served.gz"
    served.write_bytes(gzip.compress(b"not the merges"))
    with pytest.raises(UserError, match="SHA-256") as caught:
        find_bpe_file()
    assert str(cached) in str(caught.value)
    assert not cached.exists()
    served.write_bytes(BPE_FILE.read_bytes())
    assert find_bpe_file() == cached
    assert cached.read_bytes() == BPE_FILE.read_bytes()
    assert [p.name for p in cached.parent.iterdir()] == [cached.name]  # nothing half-written
    served.unlink()
    assert get_tokenizer("openai")("a dog")[0, 2] == 1929  # from the cache


def test_no_bpe_file_or_a_wrong_one(cached, tmp_path):
    with pytest.raises(UserError, match=f"{bpe.BPE_FILE_NAME}.*{bpe.BPE_FILE_VARIABLE}") as caught:
        get_tokenizer("clip_bpe")
    assert str(cached) in str(caught.value)
    assert "\n" not in str(caught.value)
    wrong = tmp_path / bpe.BPE_FILE_NAME
    wrong.write_bytes(gzip.compress(b"not the merges"))
    with pytest.raises(UserError, match="SHA-256"):
        find_bpe_file(wrong)
    with pytest.raises(UserError, match="not a file"):
        find_bpe_file(tmp_path / "absent")
    for content in (wrong.read_bytes(), b"not gzip"):
        with pytest.raises(UserError, match="corrupted"):
            ClipBpeTokenizer(content)


# --- SentencePiece ------------------------------------------------------------------------------


def test_sentencepiece_ids(pieces):
    row = pieces(["Greek  small letter OMEGA", ""])
    assert (pieces.pad_id, pieces.eos_id) == (0, 2)
    end = row[0].tolist().index(2)
    assert (row[0, :end] > 2).all()
    assert not row[0, end + 1 :].any()
    assert row[1].tolist() == [2] + [0] * 15
    assert pieces.decode(row[0]) == "greek small letter omega"
    long = pieces.with_context_length(40)
    for text in ("你好 😀 ω", "</s> <pad> <unk> <0x41>"):
        assert 1 not in long(text)
        assert long.decode(long(text)[0]) == text


def test_small_vocabulary_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        small = train_sentencepiece(CAPTIONS, vocab_size=5000)
    assert 259 < small.vocab_size < 5000
    assert f"{small.vocab_size} pieces (vocab_size=5000 asked for)" in caplog.text


def test_one_caption_and_many_characters():
    assert train_sentencepiece(["a"], vocab_size=1000)("a")[0, -1] == 0
    # 3,000 different characters ask for more pieces than there are: the rare ones become bytes.
    chinese = [chr(0x4E00 + i) + chr(0x4E00 + i // 2) for i in range(3000)]
    tokenizer = train_sentencepiece(chinese, vocab_size=600)
    assert tokenizer.vocab_size <= 600
    assert tokenizer.decode(tokenizer(chinese[-1])[0]) == chinese[-1]


def test_training_is_deterministic_across_processes():
    names = [unicodedata.name(chr(c), "") for c in range(0x20, 0x2000)]
    code = (
        "import sys, hashlib; from clip_jax.text.tokenizer import train_sentencepiece\n"
        "t = train_sentencepiece(sys.stdin.read().split('\\n'), 1000)\n"
        "print(hashlib.sha256(t.to_files()[1]['tokenizer.model']).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            input="\n".join(names + names[:n]),  # captions that occur again change nothing
            capture_output=True,
            text=True,
            check=True,
            cwd=REPOSITORY,
        )
        for n in (0, 500)
    ]
    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stderr == runs[1].stderr == ""


def test_training_mistakes():
    with pytest.raises(UserError, match="no captions"):
        train_sentencepiece(["", "  "], vocab_size=400)
    with pytest.raises(UserError, match="vocab_size=100"):
        train_sentencepiece(CAPTIONS, vocab_size=100)
    with pytest.raises(UserError, match="cleaning='upper'"):
        train_sentencepiece(CAPTIONS, vocab_size=400, cleaning="upper")


def test_special_ids_of_a_model(pieces):
    model = pieces.model
    siglip_like = SentencePieceTokenizer(model, context_length=8, pad_id=2)
    assert siglip_like("")[0].tolist() == [2] * 8
    with pytest.raises(UserError, match="bos_id=-1"):
        SentencePieceTokenizer(model, add_bos=True)
    with pytest.raises(UserError, match="pad_id=99999"):
        SentencePieceTokenizer(model, pad_id=99999)
    gemma_like = piece_model(CAPTIONS, vocab_size=100, pad_id=0, eos_id=1, bos_id=2, unk_id=3)
    tokenizer = SentencePieceTokenizer(gemma_like, context_length=6, add_bos=True)
    row = tokenizer("greek small letter omega and more", truncate=True)[0]
    assert (row[0], row[-1]) == (2, 1)


# --- Saving, loading, finding -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.model", None),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"garbage"),
        (TOKENIZER_CONFIG_NAME, None),
        (TOKENIZER_CONFIG_NAME, b"{"),
        (TOKENIZER_CONFIG_NAME, b"\xff\xfe"),
        (TOKENIZER_CONFIG_NAME, b"[]"),
        (TOKENIZER_CONFIG_NAME, b'{"sha256": {}}'),
        (TOKENIZER_CONFIG_NAME, b'{"kind": "words", "options": {}, "sha256": {}}'),
        (TOKENIZER_CONFIG_NAME, b'{"kind": "sentencepiece", "sha256": {}}'),
        (TOKENIZER_CONFIG_NAME, b'{"kind": "sentencepiece", "options": {}, "sha256": {}}'),
        (TOKENIZER_CONFIG_NAME, b'{"kind": "clip_bpe", "sha256": {"../x": ""}}'),
    ],
)
def test_damaged_files_are_named(pieces, tmp_path, name, content):
    save_tokenizer(pieces, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_option_is_named(pieces, tmp_path):
    spec, files = pieces.to_files()
    spec["options"]["colour"] = 1
    with pytest.raises(UserError, match="colour"):
        tokenizer_from_files(spec, files)


def test_get_tokenizer_by_path_and_unknown(pieces, tmp_path):
    path = tmp_path / "my.model"
    path.write_bytes(pieces.model)
    texts = ["a photo of a cat!", ""]
    np.testing.assert_array_equal(get_tokenizer(path)(texts)[:, :16], pieces(texts))
    path.write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"my\.model"):
        get_tokenizer(str(path))
    for unknown in ("gpt4", str(tmp_path / "absent")):
        with pytest.raises(UserError, match=f"{unknown}.*clip_bpe.*directory"):
            get_tokenizer(unknown)
