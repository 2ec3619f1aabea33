"""Tokenizers out of Hugging Face and open_clip directories, of any vocabulary size, and back."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from clip_jax.errors import UserError
from clip_jax.text.tokenizer import (
    ClipBpeTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    get_tokenizer,
    load_huggingface_tokenizer,
    load_tokenizer,
    save_tokenizer,
    to_huggingface_files,
    tokenizer_from_files,
    train_sentencepiece,
)

TEXTS = ["a cat on a mat", "", "A CAT'S low mat", "lower lowest newer"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONFIG, SPECIAL_MAP = "tokenizer_config.json", "special_tokens_map.json"


def write(folder: Path, files: dict[str, bytes | dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    return folder


def clip_files(letters: str = LETTERS + "'") -> dict[str, bytes | dict]:
    """A CLIP vocabulary of some letters and a few merges."""
    merges = [("l", "o"), ("lo", "w</w>"), ("lo", "w"), ("e", "r</w>"), ("a", "t</w>")]
    symbols = [*letters, *(f"{c}</w>" for c in letters), *("".join(m) for m in merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    return {
        "vocab.json": {symbol: i for i, symbol in enumerate(symbols)},
        "merges.txt": "\n".join(lines).encode(),
        CONFIG: {"tokenizer_class": "CLIPTokenizer", "model_max_length": 20},
    }


def bert_files(*words: str) -> dict[str, bytes | dict]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = LETTERS + "[]'"
    tokens = [*special, *letters, *(f"##{c}" for c in letters), "cat", "mat", *words]
    return {"vocab.txt": "\n".join(tokens).encode(), CONFIG: {"tokenizer_class": "BertTokenizer"}}


def piece_model(**options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, "low cat </s> <eos> ! , . _ the quick brown fox"] * 3),
        model_writer=model,
        vocab_size=70,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def unigram_json(*, special: bool) -> bytes:
    """A tokenizer.json whose model holds its special tokens as pieces, like those of T5."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in LETTERS + "<>/"]
    backend = Backend(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], special_tokens=[("</s>", 1)]
    )
    add = backend.add_special_tokens if special else backend.add_tokens
    add(["<pad>", "</s>", "<unk>", "<mask>"])
    return backend.to_str().encode()


def gemma_json() -> bytes:
    """Byte-pair like Gemma's: BOS first by the file, no lower-casing."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, "<", ">"]
    merges = [("c", "a"), ("ca", "t")]
    vocab = {t: i for i, t in enumerate([*tokens, "ca", "cat"])}
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Replace("▁", " ")
    backend.add_special_tokens(tokens[:5])
    backend.post_processor = processors.TemplateProcessing(
        single=["<bos>", "$A"], special_tokens=[("<bos>", 2)]
    )
    return backend.to_str().encode()


GEMMA_CONFIG = {"tokenizer_class": "GemmaTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}


# --- CLIP ---------------------------------------------------------------------------------------


def test_tiny_clip_directory(tmp_path):
    ours = load_huggingface_tokenizer(write(tmp_path, clip_files()))
    assert isinstance(ours, ClipBpeTokenizer)
    vocab = clip_files()["vocab.json"]
    eos = vocab["<|endoftext|>"]
    assert (ours.vocab_size, ours.eos_id, ours.pad_id, ours.context_length) == (61, eos, eos, 20)
    # "low" + "er": the merge lo+w</w> is not for a w within a word, the merge lo+w is.
    expected = [vocab[s] for s in ("<|startoftext|>", "low", "er</w>", "<|endoftext|>")]
    assert ours("LOWER")[0].tolist() == expected + [eos] * 16
    # What the vocabulary cannot spell is left out: an unknown token would be EOS.
    assert ours("l!ow")[0, :5].tolist() == [
        eos - 1,
        *(vocab[s] for s in ("l</w>", "o", "w</w>")),
        eos,
    ]
    assert ours.decode(ours("low er 7")[0]) == "low er"
    assert (ours("7 low " * 30, truncate=True)[0, 1:19] == vocab["low</w>"]).all()
    parsing = ClipBpeTokenizer(**_parts(clip_files()), pad_id=eos, special_strings="parse")
    assert parsing("l!w")[0, :5].tolist() == [eos - 1, vocab["l</w>"], eos, vocab["w</w>"], eos]


def _parts(files) -> dict[str, bytes]:
    return {"merges": files["merges.txt"], "vocab": json.dumps(files["vocab.json"]).encode()}


@pytest.mark.parametrize(
    ("pad", "expected"), [("<|endoftext|>", 60), ("a", 0), ({"content": "a"}, 0), (None, 60)]
)
def test_pad_id_comes_from_the_files(tmp_path, pad, expected):
    files = clip_files()
    if pad is not None:
        files[SPECIAL_MAP] = {"pad_token": pad}
    assert load_huggingface_tokenizer(write(tmp_path, files)).pad_id == expected


def test_clip_from_every_layout(tmp_path, monkeypatch):
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
        tokenizer_from_files(*reference.to_files()),
        pickle.loads(pickle.dumps(reference)),
    ):
        assert isinstance(found, ClipBpeTokenizer)
        np.testing.assert_array_equal(found(TEXTS), reference(TEXTS))
    (folder / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"vocab\.json cannot be read"):
        get_tokenizer(folder / "merges.txt")


def test_transformers_loads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = load_huggingface_tokenizer(write(tmp_path / "a", clip_files()))
    folder = write(tmp_path / "b", to_huggingface_files(ours))
    for cls in ("CLIPTokenizer", "CLIPTokenizerFast", "AutoTokenizer"):
        theirs = getattr(transformers, cls).from_pretrained(folder)
        got = theirs(TEXTS, padding="max_length", truncation=True)["input_ids"]
        assert ours(TEXTS).tolist() == got, cls


def test_open_clip_directory(tmp_path):
    text = {"context_length": 24}
    files = clip_files() | {"open_clip_config.json": {"model_cfg": {"text_cfg": text}}}
    clip = load_huggingface_tokenizer(write(tmp_path / "clip", files))
    assert (clip.context_length, clip.pad_id) == (24, 0)
    text |= {
        "hf_tokenizer_name": "bert-base-uncased",
        "context_length": 9,
        "tokenizer_kwargs": {"strip_sep_token": True, "clean": "canonicalize"},
    }
    files = bert_files() | {"open_clip_config.json": {"model_cfg": {"text_cfg": text}}}
    clipa = load_huggingface_tokenizer(write(tmp_path / "clipa", files))
    assert (clipa.context_length, clipa.cleaning) == (9, "canonicalize")
    assert clipa("cat")[0, 2:].tolist() == [0] * 7


# --- WordPiece and CLIPA ------------------------------------------------------------------------


def test_clipa_rule(tmp_path):
    folder = write(tmp_path, bert_files())
    plain = load_huggingface_tokenizer(folder, context_length=6)
    clipa = load_huggingface_tokenizer(folder, context_length=6, strip_sep_token=True)
    vocab = {t: i for i, t in enumerate(bert_files()["vocab.txt"].decode().split("\n"))}
    a, cat = vocab["a"], vocab["cat"]
    assert plain("A cat")[0].tolist() == [2, a, cat, 3, 0, 0]
    assert clipa("A cat")[0].tolist() == [2, a, cat, 0, 0, 0]
    assert clipa("cat " * 9, truncate=True)[0].tolist() == [2, cat, cat, cat, cat, 0]
    assert plain("cat " * 9, truncate=True)[0].tolist() == [2, cat, cat, cat, cat, 3]
    assert clipa.decode(clipa("a cat")[0]) == plain.decode(plain("a cat")[0]) == "a cat"
    np.testing.assert_array_equal(
        get_tokenizer(folder / "vocab.txt").with_context_length(6)(TEXTS[:2], truncate=True),
        plain(TEXTS[:2], truncate=True),
    )
    cased = write(tmp_path, {CONFIG: {"tokenizer_class": "BertTokenizer", "do_lower_case": False}})
    assert load_huggingface_tokenizer(cased)("CAT")[0, 1] == vocab["[UNK]"]


# --- Gemma, T5, SigLIP --------------------------------------------------------------------------


def test_siglip2_gemma(tmp_path):
    folder = write(tmp_path / "json", {"tokenizer.json": gemma_json(), CONFIG: GEMMA_CONFIG})
    ours = load_huggingface_tokenizer(folder)
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
    model = piece_model(pad_id=0, eos_id=1, bos_id=-1, unk_id=2)
    files = {"spiece.model": model, "config.json": {"model_type": "siglip"}}
    folder = write(tmp_path / "siglip", files)
    siglip = load_huggingface_tokenizer(folder)
    assert (siglip.cleaning, siglip.pad_id, siglip.eos_id) == ("siglip", 1, 1)
    np.testing.assert_array_equal(siglip("A, cat_!"), siglip("a cat"))
    canonical = load_huggingface_tokenizer(folder, cleaning="canonicalize", context_length=7)
    assert (canonical.cleaning, canonical.context_length) == ("canonicalize", 7)
    config = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "model_max_length": 10**30}
    t5 = load_huggingface_tokenizer(write(tmp_path / "t5", {"spiece.model": model, CONFIG: config}))
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


# --- Special strings are text -------------------------------------------------------------------


def hostile_tokenizers(tmp_path) -> dict[str, tuple[Tokenizer, str]]:
    """name → (tokenizer, special strings that its files know)."""
    bert = bert_files("sep", "cls")
    word_level = Backend(models.WordLevel({"[PAD]": 0, "[SEP]": 1, "[UNK]": 2, "cat": 3}, "[UNK]"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    word_level.add_tokens(["[SEP]"])
    word_level.post_processor = processors.TemplateProcessing(
        single=["$A", "[SEP]"], special_tokens=[("[SEP]", 1)]
    )
    return {
        "clip": (
            load_huggingface_tokenizer(
                write(tmp_path / "clip", clip_files("<|>abcdefghijklmnopqrstuvwxyz"))
            ),
            "<|endoftext|> <|startoftext|>x<|endoftext|>",
        ),
        "bert": (load_huggingface_tokenizer(write(tmp_path / "bert", bert)), "[SEP] a[CLS] [PAD]"),
        "unigram": (HuggingFaceTokenizer(unigram_json(special=True)), "</s> a</s>b <pad><mask>"),
        "added": (HuggingFaceTokenizer(unigram_json(special=False)), "</s> a</s>b <pad>"),
        "words": (HuggingFaceTokenizer(word_level.to_str().encode()), "[SEP] cat [PAD]"),
        "gemma": (
            load_huggingface_tokenizer(
                write(tmp_path / "gemma", {"tokenizer.json": gemma_json(), CONFIG: GEMMA_CONFIG})
            ),
            "<eos> a<eos>b <pad><bos>",
        ),
        "pieces": (
            SentencePieceTokenizer(piece_model(pad_id=0, eos_id=1, bos_id=2, unk_id=3)),
            "</s> a</s>b <pad><s>",
        ),
    }


@pytest.mark.parametrize("name", ["clip", "bert", "unigram", "added", "words", "gemma", "pieces"])
def test_special_strings_stay_text(tmp_path, name):
    ours, text = hostile_tokenizers(tmp_path)[name]
    ours = ours.with_context_length(60)
    ordinary = ours("cat")[0].tolist()
    row = ours(text)[0].tolist()
    end = row.index(ours.eos_id)
    # EOS stands where the text ends and, but for padding of the same id, nowhere else.
    assert set(row[end + 1 :]) <= {ours.pad_id}
    special = {ours.eos_id, ours.pad_id} | set(ours._prefix)
    assert special.isdisjoint(row[len(ours._prefix) : end])
    assert ordinary[: len(ours._prefix)] == row[: len(ours._prefix)] == list(ours._prefix)
    spec, files = ours.to_files()
    spec["options"]["special_strings"] = "parse"
    parsed = tokenizer_from_files(spec, files)(text)[0].tolist()
    assert parsed.index(ours.eos_id) < end or name == "bert"
    if name == "bert":
        assert parsed[1] == 3


def test_marks_of_hidden_names_do_not_reveal_them():
    ours = HuggingFaceTokenizer(unigram_json(special=True), context_length=30)
    row = ours("\ufdd0\ufdd1\ufdd2</s>")[0].tolist()
    assert row.index(1) == len([i for i in row if i > 1])


# --- Saving, damage -----------------------------------------------------------------------------


def test_huggingface_tokenizer_round_trips(tmp_path):
    ours = load_huggingface_tokenizer(
        write(tmp_path / "hf", bert_files()), context_length=12, strip_sep_token=True
    ).with_truncation(True)
    assert isinstance(ours, Tokenizer)
    save_tokenizer(ours, tmp_path / "saved")
    texts = [*TEXTS, "cat " * 50]
    for copy in (
        load_tokenizer(tmp_path / "saved"),
        get_tokenizer(tmp_path / "saved"),
        pickle.loads(pickle.dumps(ours)),
    ):
        assert copy.to_files() == ours.to_files()
        np.testing.assert_array_equal(copy(texts), ours(texts))
    folder = write(tmp_path / "again", to_huggingface_files(ours))
    again = load_huggingface_tokenizer(folder, strip_sep_token=True)
    assert again.context_length == 12
    np.testing.assert_array_equal(again(texts, truncate=True), ours(texts))
    with pytest.raises(UserError, match="52 ids, more than context_length=12"):
        ours.with_truncation(False)(texts[-1])


def test_surrogates_and_long_texts(tmp_path):
    for ours, _ in hostile_tokenizers(tmp_path).values():
        cutting = ours.with_truncation(True)
        row = cutting("\ud800 cat" + "cat " * 25_000)[0]
        assert row[-1] == ours.eos_id


def test_directory_without_tokenizer_files(tmp_path):
    write(tmp_path, {"config.json": {"model_type": "clip"}, "model.safetensors": b""})
    assert load_huggingface_tokenizer(tmp_path) is None
    assert load_huggingface_tokenizer(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": b"{"}, "tokenizer.json is not JSON"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json"),
        ({"tokenizer.json": b'{"model": 3}'}, "damaged"),
        ({"tokenizer.json": gemma_json()[:-900]}, "tokenizer.json is not JSON"),
        (clip_files() | {"merges.txt": b"a b c\n"}, "merges.txt:1: 'a b c' is not two symbols"),
        (clip_files() | {"merges.txt": b"q z\n"}, "unknown symbol 'qz'"),
        (clip_files() | {"vocab.json": b"[]"}, "vocab.json: expected an object"),
        (clip_files() | {"vocab.json": {"a": "b"}}, "vocab.json"),
        (clip_files() | {CONFIG: b"no"}, "tokenizer_config.json is not JSON"),
        ({CONFIG: {"tokenizer_class": "CLIPTokenizer"}, "vocab.txt": b"a"}, "without its files"),
        ({"vocab.txt": b"a\nb"}, "lacks the special token"),
        ({"vocab.txt": b"\xff\xff"}, "vocab.txt is corrupted"),
        ({"spiece.model": b"no"}, "not a SentencePiece model"),
        ({"tokenizer.json": gemma_json(), CONFIG: GEMMA_CONFIG | {"eos_token": "</s>"}}, "'</s>'"),
    ],
)
def test_damaged_directories(tmp_path, files, message):
    with pytest.raises(UserError) as caught:
        load_huggingface_tokenizer(write(tmp_path, files))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
