"""Tokenizers out of Hugging Face and open_clip directories, of any vocabulary size, and back."""

import pickle

import numpy as np
import pytest
from tokenizer_files import (
    ADDED,
    CONFIG,
    GEMMA_CONFIG,
    SPECIAL_MAP,
    TEXTS,
    bert_files,
    clip_files,
    full_clip_files,
    gemma_files,
    of_class,
    piece_model,
    roberta_files,
    siglip_files,
    write,
)

from clip_jax.errors import UserError
from clip_jax.text.clip_bpe import ClipBpeTokenizer
from clip_jax.text.huggingface_export import to_huggingface_files
from clip_jax.text.huggingface_files import load_huggingface_tokenizer
from clip_jax.text.huggingface_pipeline import HuggingFaceTokenizer
from clip_jax.text.sentencepiece_model import SentencePieceTokenizer, train_sentencepiece
from clip_jax.text.tokenizer import get_tokenizer, tokenizer_from_files


def test_tiny_clip_directory(tmp_path):
    ours = load_huggingface_tokenizer(write(tmp_path, clip_files()))
    assert isinstance(ours, ClipBpeTokenizer)
    vocab = clip_files()["vocab.json"]
    bos, eos, low = (vocab[s] for s in ("<|startoftext|>", "<|endoftext|>", "low</w>"))
    assert (ours.vocab_size, ours.eos_id, ours.pad_id, ours.context_length) == (61, eos, eos, 20)
    # "low" + "er": the merge lo+w</w> is not for a w within a word, the merge lo+w is.
    assert ours("LOWER")[0].tolist() == [bos, vocab["low"], vocab["er</w>"], eos] + [eos] * 16
    # What the vocabulary cannot spell is left out: an unknown token would be EOS.
    spelled = [vocab[s] for s in ("l</w>", "o", "w</w>")]
    assert ours("l!ow")[0, :5].tolist() == [bos, *spelled, eos]
    assert ours.decode(ours("low er 7")[0]) == "low er"
    assert (ours("7 low " * 30, truncate=True)[0, 1:19] == low).all()
    spec, files = ours.to_files()
    spec["options"]["special_strings"] = "parse"
    parsed = tokenizer_from_files(spec, files)("l!w")[0, :5].tolist()
    assert parsed == [bos, vocab["l</w>"], eos, vocab["w</w>"], eos]


@pytest.mark.parametrize(
    ("pad", "expected"), [("<|endoftext|>", 60), ("a", 0), ({"content": "a"}, 0), (None, 60)]
)
def test_pad_id_comes_from_the_files(tmp_path, pad, expected):
    files = clip_files()
    if pad is not None:
        files[SPECIAL_MAP] = {"pad_token": pad}
    assert load_huggingface_tokenizer(write(tmp_path, files)).pad_id == expected


def test_clip_from_every_layout(tmp_path):
    folder = write(tmp_path / "both", clip_files())
    reference = load_huggingface_tokenizer(folder)
    files = to_huggingface_files(reference)
    assert set(files) == {"vocab.json", "merges.txt", "tokenizer.json", CONFIG, SPECIAL_MAP}
    only_json = write(tmp_path / "json", {"tokenizer.json": files["tokenizer.json"]})
    for found in (
        load_huggingface_tokenizer(only_json, context_length=20),
        get_tokenizer(only_json / "tokenizer.json").with_context_length(20),
        get_tokenizer(folder),
        get_tokenizer(folder / "merges.txt"),
        get_tokenizer(str(folder / "vocab.json")),
        pickle.loads(pickle.dumps(reference)),
    ):
        assert isinstance(found, ClipBpeTokenizer)
        np.testing.assert_array_equal(found(TEXTS), reference(TEXTS))
    text = {"context_length": 24}
    write(folder, {"open_clip_config.json": {"model_cfg": {"text_cfg": text}}})
    assert load_huggingface_tokenizer(folder).context_length == 24
    assert load_huggingface_tokenizer(folder).pad_id == 0
    (folder / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"vocab\.json cannot be read"):
        get_tokenizer(folder / "merges.txt")
    bert = write(tmp_path / "bert", bert_files())
    np.testing.assert_array_equal(
        get_tokenizer(bert / "vocab.txt")(TEXTS), get_tokenizer(bert)(TEXTS)
    )


def test_transformers_loads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = load_huggingface_tokenizer(write(tmp_path / "a", clip_files()))
    folder = write(tmp_path / "b", to_huggingface_files(ours))
    for cls in ("CLIPTokenizer", "CLIPTokenizerFast", "AutoTokenizer"):
        theirs = getattr(transformers, cls).from_pretrained(folder)
        got = theirs(TEXTS, padding="max_length", truncation=True)["input_ids"]
        assert ours(TEXTS).tolist() == got, cls


def test_gemma(tmp_path):
    ours = load_huggingface_tokenizer(write(tmp_path / "fast", gemma_files()))
    assert isinstance(ours, HuggingFaceTokenizer)
    assert (ours.context_length, ours.eos_id, ours.pad_id) == (64, 1, 0)
    row = ours("A CAT")[0].tolist()
    assert ours._backend.id_to_token(row[0]) == "a"  # lower-cased, and no BOS
    assert row[3:] == [1] + [0] * 60
    assert ours.decode(row) == "a cat"
    transformers = pytest.importorskip("transformers")
    exported = write(tmp_path / "exported", to_huggingface_files(ours))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(exported / "tokenizer.json"))
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours(text)[0, : len(expected) + 1].tolist() == [*expected, 1]

    model = piece_model(pad_id=0, eos_id=1, bos_id=2, unk_id=3, add_dummy_prefix=False)
    folder = write(tmp_path / "model", {"tokenizer.model": model, CONFIG: GEMMA_CONFIG})
    pieces = load_huggingface_tokenizer(folder)
    assert isinstance(pieces, SentencePieceTokenizer)
    assert (pieces.context_length, pieces.eos_id, pieces.pad_id) == (64, 1, 0)
    np.testing.assert_array_equal(pieces("A CAT"), pieces("a cat"))
    assert 2 not in pieces("A CAT")


def test_siglip_and_t5(tmp_path):
    files = {
        "spiece.model": siglip_files()["spiece.model"],
        "config.json": {"model_type": "siglip"},
    }
    folder = write(tmp_path / "siglip", files)
    siglip = load_huggingface_tokenizer(folder)
    assert (siglip.cleaning, siglip.pad_id, siglip.eos_id) == ("siglip", 1, 1)
    np.testing.assert_array_equal(siglip("A, cat_!"), siglip("a cat"))
    text = {"context_length": 7, "tokenizer_kwargs": {"clean": "canonicalize"}}
    write(folder, {"open_clip_config.json": {"model_cfg": {"text_cfg": text}}})
    canonical = load_huggingface_tokenizer(folder)
    assert (canonical.cleaning, canonical.context_length) == ("canonicalize", 7)
    config = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "model_max_length": 10**30}
    t5 = load_huggingface_tokenizer(write(tmp_path / "t5", files | {CONFIG: config}))
    assert (t5.cleaning, t5.pad_id, t5.eos_id, t5.context_length) == ("none", 0, 1, 77)


def test_trained_tokenizer_as_huggingface_files(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("google.protobuf")
    captions = [*TEXTS, "naïve 你好", *(f"the {i}th cat" for i in range(40))]
    ours = train_sentencepiece(captions, 400, context_length=24)
    folder = write(tmp_path, to_huggingface_files(ours))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, "  The 7th  CAT", "unseen 😀"]
    got = theirs(texts, padding="max_length", truncation=True)["input_ids"]
    assert ours(texts).tolist() == got
    refusing = SentencePieceTokenizer(piece_model(pad_id=0, bos_id=1, eos_id=2, unk_id=3))
    with pytest.raises(UserError, match="no counterpart"):
        to_huggingface_files(refusing)
    with pytest.raises(UserError, match="a object cannot be written"):
        to_huggingface_files(object())


# --- Damage -------------------------------------------------------------------------------------


def test_directory_without_tokenizer_files(tmp_path):
    write(tmp_path, {"config.json": {"model_type": "clip"}, "model.safetensors": b""})
    assert load_huggingface_tokenizer(tmp_path) is None
    assert load_huggingface_tokenizer(tmp_path / "absent") is None


def clip(**files) -> dict[str, bytes | dict]:
    return full_clip_files() | {name.replace("_", "."): files[name] for name in files}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": b"{"}, "tokenizer.json is not JSON"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json"),
        ({"tokenizer.json": b'{"model": 3}'}, "damaged"),
        ({"tokenizer.json": gemma_files()["tokenizer.json"][:-900]}, "tokenizer.json is not JSON"),
        (clip(merges_txt=b"a b c\n"), "merges.txt:1: 'a b c' is not two symbols"),
        (clip(merges_txt=b"q z\n"), "unknown symbol 'qz'"),
        (clip(merges_txt=b"\xff\n"), "merges.txt is corrupted"),
        (clip(vocab_json=b"[]"), "vocab.json: expected an object"),
        (clip(vocab_json={"a": "b"}), "vocab.json"),
        (full_clip_files() | {CONFIG: b"no"}, "tokenizer_config.json is not JSON"),
        (of_class("CLIPTokenizer", {"vocab.txt": b"a"}), "without its files"),
        ({"vocab.txt": b"a\nb"}, "lacks the special token"),
        ({"vocab.txt": b"\xff\xff"}, "vocab.txt is corrupted"),
        ({"spiece.model": b"no"}, "not a SentencePiece model"),
        (gemma_files() | {CONFIG: GEMMA_CONFIG | {"eos_token": "</s>"}}, "'</s>'"),
        # Added tokens whose files contradict themselves.
        (full_clip_files() | {ADDED: {"<sks>": 900}}, "'<sks>' has id 900"),
        (bert_files() | {ADDED: {"<sks>": 900}}, "'<sks>' has id 900"),
        (roberta_files() | {ADDED: {"<sks>": 900}}, "'<sks>' has id 900"),
        (siglip_files() | {ADDED: {"<sks>": 5}}, "'<sks>' has id 5"),
        (full_clip_files() | {ADDED: {"<sks>": "7"}}, "'<sks>' with id '7'"),
        (full_clip_files() | {ADDED: {"": 516}}, "added token ''"),
        (bert_files() | {CONFIG: {"added_tokens_decoder": {"x": {"content": "a"}}}}, "'x'"),
        (bert_files() | {CONFIG: {"added_tokens_decoder": {"9": "a"}}}, "'9'"),
        (full_clip_files() | {CONFIG: {"additional_special_tokens": [3]}}, "damaged"),
        (full_clip_files() | {ADDED: b"[1]"}, "added_tokens.json: expected an object"),
        (
            of_class("T5Tokenizer", {"spiece.model": siglip_files()["spiece.model"]})
            | {ADDED: {"<sks>": 70}},
            "added tokens <sks>: only a tokenizer.json",
        ),
    ],
)
def test_damaged_directories(tmp_path, files, message):
    with pytest.raises(UserError) as caught:
        load_huggingface_tokenizer(write(tmp_path, files))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
