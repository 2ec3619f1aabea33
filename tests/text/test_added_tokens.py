"""Tokens that a user added to a vocabulary: transformers' ids, whatever file keeps them."""

import json
import logging
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_clip import TINY, nested, random_params, tiny
from tokenizer_files import (
    ADDED,
    CONFIG,
    GEMMA_CONFIG,
    SPECIAL_MAP,
    bert_files,
    full_clip_files,
    gemma_files,
    of_class,
    roberta_files,
    siglip_files,
    write,
    xlm_files,
)

import clip_jax
from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.text.cleaning import clean_text
from clip_jax.text.huggingface_export import to_huggingface_files
from clip_jax.text.huggingface_files import load_huggingface_tokenizer
from clip_jax.text.tokenizer import get_tokenizer
from clip_jax.weights.layouts.huggingface_config import siglip_config
from clip_jax.weights.layouts.open_clip_folder import open_clip_tokenizer

transformers = pytest.importorskip("transformers")
from tokenizers import AddedToken  # noqa: E402

TEXTS = [
    *(
        "",
        "<sks>",
        "a photo of <sks>",
        "<sks> on a mat",
        "a <sks> cat",
        "a cat, <sks>.",
        "(<sks>)!",
    ),
    *("<sks>'s cat", "low<sks>er", "<sks><sks> <sks>", "A <SKS> CAT", "a cat on a mat"),
    *("a PALLAS cat and a pallas cat", "pallascat catpallas pallas", "a \t <sks> \n cat"),
    *("   a   <sks>   cat   ", "in new york, in new  york and NEW YORK", "a   <left>   cat"),
    *("a   <right>   cat", "a  <both>  cat<both>low", "a <special> cat<special>"),
    *("word sword wordy word-word (word) word", "a <SPECIAL> cat", "a Mixed mixed MIXED cat"),
    *("a naïve cat, na\u00efve na\u0069\u0308ve", "猫 a 猫cat 猫猫", "a 😀 cat 😀"),
    *("<sks <sks>> <<sks>>", "<sks> pallas word <special> new york 猫 <both> low"),
]
TOKENS: list[Any] = [
    "<sks>",
    "pallas",
    "new york",
    AddedToken("<left>", lstrip=True),
    AddedToken("<right>", rstrip=True),
    AddedToken("<both>", lstrip=True, rstrip=True),
    AddedToken("word", single_word=True),
    AddedToken("Mixed", normalized=False),
    AddedToken("<special>", special=True),
    "naïve",
    "猫",
    "😀",
]


FAMILIES = {
    "clip": (full_clip_files, "CLIPTokenizer"),
    "bert": (lambda: bert_files(*",.()!<>-"), "BertTokenizer"),
    "roberta": (roberta_files, "RobertaTokenizer"),
    "siglip": (siglip_files, "SiglipTokenizer"),
}


def theirs_of(family: str, folder: Path) -> Any:
    return getattr(transformers, FAMILIES[family][1]).from_pretrained(folder)


def with_tokens(family: str, folder: Path, tokens: list[Any] = TOKENS) -> Any:
    """A folder that transformers saved after the tokens were added; its tokenizer."""
    files = FAMILIES[family][0]()
    first = theirs_of(family, write(folder.with_name("before"), files))
    first.add_tokens(tokens)
    first.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "vocab.txt"):  # the slow tokenizers' files too
        if name in files and not (folder / name).exists():
            write(folder, {name: files[name]})
    return theirs_of(family, folder)


def ids(theirs: Any, text: str, length: int = 60) -> list[int]:
    return theirs(text, padding="max_length", truncation=True, max_length=length)["input_ids"]


def assert_same_ids(ours: Any, theirs: Any, length: int = 60, cleaning: str = "none") -> None:
    ours = ours.with_context_length(length).with_truncation(True)
    for given in TEXTS:
        text = clean_text(given, cleaning)
        assert ours(text)[0].tolist() == ids(theirs, text, length), text


PIECES = [
    *("<sks>", "<SKS>", "pallas", "Pallas", "word", "sword", "new york", "new  york", "New York"),
    *("<left>", "<right>", "<both>", "Mixed", "mixed", "<special>", "naïve", "NAÏVE", "猫", "😀"),
    *(" ", "  ", "\t", "\n", "a", "cat", "low", "er", ".", ",", "!", "'s", "-", "(", ")", "é", "_"),
    *("0", "<", ">"),
]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_ids_are_those_of_transformers(family, tmp_path):
    theirs = with_tokens(family, tmp_path / "hf")
    ours = load_huggingface_tokenizer(tmp_path / "hf")
    assert ours.vocab_size == len(theirs)
    assert {t["content"] for t in ours.added_tokens} >= {"<sks>", "pallas", "<special>", "猫"}
    assert_same_ids(ours, theirs)
    assert_same_ids(ours, theirs, length=6)  # cut in the middle
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.to_files() == ours.to_files()
    assert_same_ids(copy, theirs)
    assert theirs.convert_tokens_to_ids("<sks>") in ours("a <sks>")[0]
    assert "<sks>" in ours.decode(ours("a <sks> cat")[0])
    long, rng = ours.with_context_length(40).with_truncation(True), random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(PIECES, k=rng.randrange(12)))
        assert long(text)[0].tolist() == ids(theirs, text, 40), text
    # Beside added tokens, the names of the end of text and of padding are text as before.
    for name in ("</s>", "<|endoftext|>", "[SEP]"):
        plain, row = long([name, f"{name} <sks> {name}a"]).tolist()
        end = row.index(ours.eos_id)
        assert set(row[end + 1 :]) <= {ours.pad_id}, name
        assert end > plain.index(ours.eos_id) + 1, name


def decoder(tokens):
    flags = dict.fromkeys(("special", "lstrip", "rstrip", "single_word"), False)
    return {str(i): {"content": name, "normalized": True, **flags} for name, i in tokens}


# The places of (name, id) in folders of slow tokenizers, of several years. "cat" is a word of most
# vocabularies, which becomes special.
KEPT = {
    ADDED: lambda tokens: {ADDED: dict(tokens)},
    "decoder": lambda tokens: {CONFIG: {"added_tokens_decoder": decoder(tokens)}},
    "config": lambda tokens: {CONFIG: {"additional_special_tokens": [*dict(tokens), "cat"]}},
    "map": lambda tokens: {SPECIAL_MAP: {"additional_special_tokens": [*dict(tokens), "cat"]}},
    "both": lambda tokens: KEPT[ADDED](tokens) | KEPT["map"](tokens[:1]),
}


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("place", list(KEPT))
def test_every_place_that_keeps_them(family, place, tmp_path):
    names = ["<sks>", "pallas", "new york", "猫"]
    files = FAMILIES[family][0]()
    before = theirs_of(family, write(tmp_path / "before", files))
    tokens = [(name, len(before) + n) for n, name in enumerate(names)]
    for name, content in KEPT[place](tokens).items():
        files[name] = {**files.get(name, {}), **content}
    write(tmp_path / "hf", files)
    theirs = theirs_of(family, tmp_path / "hf")
    assert theirs.convert_tokens_to_ids("<sks>") == tokens[0][1]
    ours = load_huggingface_tokenizer(tmp_path / "hf")
    assert ours.vocab_size == len(theirs)
    assert_same_ids(ours, theirs)


@pytest.mark.parametrize("family", ["clip", "bert", "roberta"])  # a .model file stands alone
def test_single_files_see_their_companions(family, tmp_path):
    theirs = with_tokens(family, tmp_path / "hf")
    ours = get_tokenizer(tmp_path / "hf" / "tokenizer.json")
    assert ours("a <sks>")[0].tolist().count(theirs.convert_tokens_to_ids("<sks>")) == 1
    slow = FAMILIES[family][0]() | {ADDED: {"<sks>": ours.vocab_size - len(TOKENS)}}
    file = write(tmp_path / "slow", slow) / ("vocab.txt" if family == "bert" else "merges.txt")
    assert get_tokenizer(file)("a <sks>")[0].tolist().count(slow[ADDED]["<sks>"]) == 1


def test_a_padding_token_of_its_own(tmp_path):
    """add_special_tokens({"pad_token": …}) gives the next id, which fills rows."""
    for family in FAMILIES:
        files = FAMILIES[family][0]()
        before = theirs_of(family, write(tmp_path / family / "before", files))
        before.add_special_tokens({"pad_token": "<fill>"})
        before.add_tokens(["<sks>"])
        before.save_pretrained(tmp_path / family / "hf")
        theirs = theirs_of(family, tmp_path / family / "hf")
        ours = load_huggingface_tokenizer(tmp_path / family / "hf")
        assert ours.pad_id == theirs.pad_token_id, family
        assert_same_ids(ours, theirs)
        assert ours.pad_id not in ours("<fill>" * 4)[0, 1:5], "the name of padding is text"


def test_xlm_roberta_pieces(tmp_path):
    """sentencepiece.bpe.model and added_tokens.json, as its slow tokenizer saved them."""
    files = xlm_files()
    start = load_huggingface_tokenizer(write(tmp_path / "before", files)).vocab_size
    names = ["<sks>", "pallas", "new york", "猫", "word"]
    files[ADDED] = {name: start + n for n, name in enumerate(names)}
    ours = load_huggingface_tokenizer(write(tmp_path / "hf", files))
    assert ours.vocab_size == start + len(names)
    theirs = transformers.XLMRobertaTokenizer.from_pretrained(tmp_path / "hf")
    assert_same_ids(ours, theirs)
    assert ours.decode(ours("a <sks> cat")[0]) == "a <sks> cat"
    back = load_huggingface_tokenizer(write(tmp_path / "back", to_huggingface_files(ours)))
    assert_same_ids(back, theirs)
    assert_same_ids(back, transformers.XLMRobertaTokenizer.from_pretrained(tmp_path / "back"))


def test_special_tokens_map_with_attributes(tmp_path):
    """The form of older files, which transformers 5 itself stumbles over."""
    files = full_clip_files()
    start = len(files["vocab.json"])
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    tokens = [{"content": name, **flags} for name in ("<sks>", "<Two>")]
    files[SPECIAL_MAP] = {"additional_special_tokens": tokens}
    ours = load_huggingface_tokenizer(write(tmp_path, files))
    assert [token["id"] for token in ours.added_tokens] == [start, start + 1]
    assert all(token["lstrip"] and token["special"] for token in ours.added_tokens)
    row = ours("<Two> <two>  <sks>")[0].tolist()
    assert (row.count(start), row.count(start + 1)) == (1, 1)


def test_siglip2(tmp_path):
    """Gemma's tokenizer.json, lower-cased first."""
    tokens = ["<sks>", "pallas", "new york", AddedToken("Mixed", normalized=False), "猫"]
    folder = tmp_path / "before"
    write(folder, gemma_files() | {CONFIG: GEMMA_CONFIG | {"tokenizer_class": "Siglip2Tokenizer"}})
    theirs = transformers.Siglip2Tokenizer.from_pretrained(folder)
    theirs.add_tokens(tokens)
    theirs.save_pretrained(tmp_path / "hf")
    theirs = transformers.Siglip2Tokenizer.from_pretrained(tmp_path / "hf")
    ours = load_huggingface_tokenizer(tmp_path / "hf").with_context_length(60)
    assert ours.vocab_size == len(theirs)
    for text in TEXTS:
        body = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours(text)[0].tolist() == ([*body, 1] + [0] * 60)[:60], text


# --- Kept through saving ------------------------------------------------------------------------


def model_with_tokens(family: str, folder: Path) -> tuple[Clip, Any]:
    theirs = with_tokens(family, folder)
    ours = load_huggingface_tokenizer(folder)
    if family == "siglip":
        sizes = {"embed_dim": 32, "context_length": 60, "vocab_size": ours.vocab_size}
        config = siglip_config(**nested(TINY | sizes))
        return Clip(config, random_params(config), ours.with_context_length(60)), theirs
    config = {"vocab_size": ours.vocab_size, "context_length": 60}
    clip = tiny(**config, text__pool="eos", text__eos_id=ours.eos_id)
    return Clip(clip.config, clip.params, ours.with_context_length(60)), theirs


@pytest.mark.parametrize("format", ["clip_jax", "huggingface", "open_clip"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_kept_by_every_layout_or_refused_by_name(family, format, tmp_path):
    clip, theirs = model_with_tokens(family, tmp_path / "hf")
    folder = tmp_path / "saved"
    if format == "open_clip" and family == "siglip":
        with pytest.raises(UserError, match="added tokens <sks>, <left>, <right>"):
            open_clip_tokenizer(clip.tokenizer)
        return
    clip.save(folder, format)
    back = clip_jax.load(folder)
    mode = "whitespace" if format == "open_clip" else "none"  # open_clip's cleaning comes first
    assert_same_ids(back.tokenizer, theirs, cleaning=mode)
    assert back.tokenizer.vocab_size == len(theirs)
    if format != "clip_jax":
        for cls in (FAMILIES[family][1], "AutoTokenizer"):
            again = getattr(transformers, cls).from_pretrained(folder)
            assert len(again) == len(theirs)
            for text in TEXTS:
                assert ids(again, text) == ids(theirs, text), (cls, text)
    back.save(tmp_path / "again", "huggingface")
    assert_same_ids(clip_jax.load(tmp_path / "again").tokenizer, theirs, cleaning=mode)


def test_words_that_open_clips_cleaning_leaves_alone_are_kept(tmp_path):
    """SigLIP in open_clip's layout: punctuation goes first, so the tokens must have none."""
    with_tokens("siglip", tmp_path / "hf", ["pallas", "sks"])
    text = {"tokenizer_kwargs": {"clean": "canonicalize"}}
    write(tmp_path / "hf", {"open_clip_config.json": {"model_cfg": {"text_cfg": text}}})
    ours = load_huggingface_tokenizer(tmp_path / "hf")
    first = ours.vocab_size - 2
    assert first in ours("a PALLAS, cat")[0]
    assert first + 1 in ours("a <sks>")[0]  # as open_clip sees it
    with pytest.raises(UserError, match="added tokens pallas, sks"):
        to_huggingface_files(ours)


# --- Embeddings ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("end", [2, "end of text"])
def test_embeddings_are_those_of_transformers(end, tmp_path, caplog):
    """Read at the end of text, or, of old configurations, at the largest id, added ones too."""
    torch = pytest.importorskip("torch")
    clip, theirs = model_with_tokens("clip", tmp_path / "hf")
    clip.save(tmp_path / "m", "huggingface")
    path = tmp_path / "m" / "config.json"
    document = json.loads(path.read_text())
    document["text_config"]["eos_token_id"] = 2 if end == 2 else clip.tokenizer.eos_id
    path.write_text(json.dumps(document))
    model = transformers.CLIPModel.from_pretrained(tmp_path / "m").eval()
    back = clip_jax.load(tmp_path / "m")
    texts = [text for text in TEXTS if text]
    batch = theirs(texts, padding="max_length", max_length=60, return_tensors="pt")
    with torch.no_grad():
        wanted = model.get_text_features(**batch)
    wanted = getattr(wanted, "pooler_output", wanted).numpy()
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.abs(back.encode_text(texts) - wanted).max() < 2e-6
    assert ("reads a text at its largest id" in caplog.text) == (end == 2)


def test_exports_stay_right_when_a_user_adds_tokens_in_transformers(tmp_path):
    """eos_token_id is the id itself, not 2: behind a larger id, 2 would read at the new token."""
    folder = write(tmp_path / "t", full_clip_files())
    ours = load_huggingface_tokenizer(folder)
    clip = tiny(vocab_size=ours.vocab_size, context_length=60)
    assert clip.config.text.pool == "argmax"
    Clip(clip.config, clip.params, ours.with_context_length(60)).save(tmp_path / "m", "huggingface")
    document = json.loads((tmp_path / "m" / "config.json").read_text())
    assert document["text_config"]["eos_token_id"] == ours.eos_id == ours.vocab_size - 1
    clip.save(tmp_path / "n", "huggingface")  # no tokenizer tells
    document = json.loads((tmp_path / "n" / "config.json").read_text())
    assert document["text_config"]["eos_token_id"] == 2


# --- Sizes and contradictions -------------------------------------------------------------------


def test_fewer_ids_than_rows_are_said_and_more_refused(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    clip, _ = model_with_tokens("clip", tmp_path / "hf")
    clip.save(tmp_path / "m", "huggingface")
    back = clip_jax.load(tmp_path / "m")
    _ = back.tokenizer, back.tokenizer
    assert "never used" not in caplog.text

    shutil.rmtree(tmp_path / "hf")
    size = clip.tokenizer.vocab_size
    short = write(tmp_path / "hf", full_clip_files())
    wide = Clip(clip.config, clip.params, load_huggingface_tokenizer(short))
    wide.save(tmp_path / "w", "huggingface")
    back = clip_jax.load(tmp_path / "w")
    _ = back.tokenizer, back.tokenizer
    said = f"has {size - len(TOKENS)} ids, the token table {size} rows"
    assert caplog.text.count(said) == 1

    narrow = tiny(vocab_size=size - 1, context_length=60)
    narrow.save(tmp_path / "n", "huggingface")
    for name in ("vocab.json", "merges.txt", "tokenizer.json", CONFIG):
        shutil.copy(tmp_path / "m" / name, tmp_path / "n" / name)
    with pytest.raises(UserError, match=f"{size} ids, but the model vocab_size={size - 1}"):
        _ = clip_jax.load(tmp_path / "n").tokenizer


def test_pieces_of_the_model_itself(tmp_path):
    files = of_class("T5Tokenizer", siglip_files())
    extra = [f"<extra_id_{n}>" for n in range(100)]
    files[SPECIAL_MAP] = {"additional_special_tokens": extra}
    assert load_huggingface_tokenizer(write(tmp_path, files)).vocab_size < 100
    own = {"3": {"content": "▁", "special": False}}  # the model's own, declared as well
    write(tmp_path, {CONFIG: {"tokenizer_class": "T5Tokenizer", "added_tokens_decoder": own}})
    assert load_huggingface_tokenizer(tmp_path).added_tokens == []


@pytest.mark.parametrize("wrong", [0, 7, 500])
def test_ids_that_the_library_would_not_give_are_refused(wrong: int, tmp_path: Path) -> None:
    with_tokens("clip", tmp_path / "hf", ["<sks>"])
    folder = tmp_path / "hf"
    spec = json.loads((folder / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        if token["content"] == "<sks>":
            token["id"] = wrong
    config = json.loads((folder / CONFIG).read_text())
    config.pop("added_tokens_decoder", None)
    write(folder, {"tokenizer.json": spec, CONFIG: config})
    with pytest.raises(UserError, match=f"added token '<sks>' has id {wrong}, but in this"):
        load_huggingface_tokenizer(folder)
