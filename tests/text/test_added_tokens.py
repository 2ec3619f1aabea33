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
from test_tokenizer_huggingface import (
    CONFIG,
    GEMMA_CONFIG,
    SPECIAL_MAP,
    bert_files,
    gemma_json,
    piece_model,
    write,
)
from tiny_clip import tiny

import clip_jax
from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.text.cleaning import clean_text
from clip_jax.text.tokenizer import (
    get_tokenizer,
    load_huggingface_tokenizer,
    load_tokenizer,
    save_tokenizer,
    to_huggingface_files,
    tokenizer_from_files,
)
from clip_jax.weights.save import open_clip_tokenizer

transformers = pytest.importorskip("transformers")
from tokenizers import AddedToken  # noqa: E402

ADDED = "added_tokens.json"
SIGLIP2 = {"tokenizer_class": "Siglip2Tokenizer"}
TEXTS = {
    "alone": "<sks>",
    "in a sentence": "a photo of <sks>",
    "at the start": "<sks> on a mat",
    "in the middle": "a <sks> cat",
    "before punctuation": "a cat, <sks>.",
    "in brackets": "(<sks>)!",
    "before an apostrophe": "<sks>'s cat",
    "inside a word": "low<sks>er",
    "repeated": "<sks><sks> <sks>",
    "in capitals": "A <SKS> CAT",
    "in capitals, plain": "a PALLAS cat and a pallas cat",
    "part of a word": "pallascat catpallas pallas",
    "other white space": "a \t <sks> \n cat",
    "much white space": "   a   <sks>   cat   ",
    "two words": "in new york, in new  york and NEW YORK",
    "strips left": "a   <left>   cat",
    "strips right": "a   <right>   cat",
    "strips both": "a  <both>  cat<both>low",
    "one word only": "word sword wordy word-word (word) word",
    "special": "a <special> cat<special>",
    "special in capitals": "a <SPECIAL> cat",
    "case matters": "a Mixed mixed MIXED cat",
    "accents": "a naïve cat, na\u00efve na\u0069\u0308ve",
    "other scripts": "猫 a 猫cat 猫猫",
    "emoji": "a 😀 cat 😀",
    "overlapping": "<sks <sks>> <<sks>>",
    "nothing": "",
    "no added token": "a cat on a mat",
    "everything": "<sks> pallas word <special> new york 猫 <both> low",
}
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


def roberta_files() -> dict[str, bytes | dict]:
    from clip_jax.text.byte_pairs import byte_symbols

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    symbols = [*special, *byte_symbols(), "ca", "cat", "lo", "low", "<mask>"]
    merges = ["#version: 0.2", "c a", "ca t", "l o", "lo w", ""]
    return {
        "vocab.json": {symbol: i for i, symbol in enumerate(symbols)},
        "merges.txt": "\n".join(merges).encode(),
        CONFIG: {"tokenizer_class": "RobertaTokenizer"},
    }


def siglip_files() -> dict[str, bytes | dict]:
    model = piece_model(pad_id=0, eos_id=1, bos_id=-1, unk_id=2)
    return {"spiece.model": model, CONFIG: {"tokenizer_class": "SiglipTokenizer"}}


def full_clip_files() -> dict[str, bytes | dict]:
    """With every byte, so that nothing is unknown (to transformers that is the end of text)."""
    from clip_jax.text.byte_pairs import byte_symbols

    symbols = [*byte_symbols(), *(f"{c}</w>" for c in byte_symbols())]
    symbols += ["ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    return {
        "vocab.json": {symbol: i for i, symbol in enumerate(symbols)},
        "merges.txt": b"#version: 0.2\nc a\nca t</w>\n",
        CONFIG: {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
    }


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
    for name, given in TEXTS.items():
        text = clean_text(given, cleaning)
        assert ours(text)[0].tolist() == ids(theirs, text, length), (name, text)


# --- The ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_ids_are_those_of_transformers(family, tmp_path):
    theirs = with_tokens(family, tmp_path / "hf")
    ours = load_huggingface_tokenizer(tmp_path / "hf")
    assert ours.vocab_size == len(theirs)
    assert {t["content"] for t in ours.added_tokens} >= {"<sks>", "pallas", "<special>", "猫"}
    assert_same_ids(ours, theirs)
    assert_same_ids(ours, theirs, length=6)  # cut in the middle
    number = theirs.convert_tokens_to_ids("<sks>")
    assert number in ours("a <sks>")[0]
    assert "<sks>" in ours.decode(ours("a <sks> cat")[0])


PIECES = [
    *("<sks>", "<SKS>", "pallas", "Pallas", "word", "sword", "new york", "new  york", "New York"),
    *("<left>", "<right>", "<both>", "Mixed", "mixed", "<special>", "naïve", "NAÏVE", "猫", "😀"),
    *(" ", "  ", "\t", "\n", "a", "cat", "low", "er", ".", ",", "!", "'s", "-", "(", ")", "é", "_"),
    *("0", "<", ">"),
]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_random_texts(family, tmp_path):
    theirs = with_tokens(family, tmp_path / "hf")
    ours = load_huggingface_tokenizer(tmp_path / "hf", context_length=40).with_truncation(True)
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(PIECES, k=rng.randrange(12)))
        assert ours(text)[0].tolist() == ids(theirs, text, 40), text


KEPT = {
    "tokenizer.json": lambda tokens: {},
    ADDED: lambda tokens: {ADDED: dict(tokens)},
    "added_tokens_decoder": lambda tokens: {
        CONFIG: {
            "added_tokens_decoder": {
                str(i): {"content": t, "normalized": True, "special": False, "lstrip": False,
                         "rstrip": False, "single_word": False}
                for t, i in tokens
            }
        }
    },
    "additional_special_tokens": lambda tokens: {
        CONFIG: {"additional_special_tokens": [t for t, _ in tokens]}
    },
    "special_tokens_map.json": lambda tokens: {
        SPECIAL_MAP: {"additional_special_tokens": [t for t, _ in tokens]}
    },
    "both": lambda tokens: {
        ADDED: dict(tokens), SPECIAL_MAP: {"additional_special_tokens": [t for t, _ in tokens[:1]]}
    },
}  # fmt: skip


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("place", list(KEPT))
def test_every_place_that_keeps_them(family, place, tmp_path):
    """The folders of slow tokenizers, of several years, and the fast ones' single file."""
    names = ["<sks>", "pallas", "new york", "猫"]
    files = FAMILIES[family][0]()
    before = theirs_of(family, write(tmp_path / "before", files))
    tokens = [(name, len(before) + n) for n, name in enumerate(names)]
    if place == "tokenizer.json":
        if family == "siglip":
            pytest.skip("SiglipTokenizer has no such file of its own")
        before.add_tokens(names)
        before.save_pretrained(tmp_path / "hf")
    else:
        for name, content in KEPT[place](tokens).items():
            files[name] = {**files.get(name, {}), **content}
        write(tmp_path / "hf", files)
    theirs = theirs_of(family, tmp_path / "hf")
    assert theirs.convert_tokens_to_ids("<sks>") == tokens[0][1]
    assert_same_ids(load_huggingface_tokenizer(tmp_path / "hf"), theirs)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_single_files_see_their_companions(family, tmp_path):
    if family == "siglip":
        pytest.skip("a .model file stands alone")
    theirs = with_tokens(family, tmp_path / "hf")
    file = "tokenizer.json"
    ours = get_tokenizer(tmp_path / "hf" / file)
    assert ours("a <sks>")[0].tolist().count(theirs.convert_tokens_to_ids("<sks>")) == 1
    slow = FAMILIES[family][0]()
    slow[ADDED] = {"<sks>": ours.vocab_size - len(TOKENS)}
    folder = write(tmp_path / "slow", slow)
    file = "vocab.txt" if family == "bert" else "merges.txt"
    assert get_tokenizer(folder / file)("a <sks>")[0].tolist().count(slow[ADDED]["<sks>"]) == 1


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


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("place", [CONFIG, SPECIAL_MAP])
def test_words_of_the_vocabulary_that_were_made_special(family, place, tmp_path):
    files = FAMILIES[family][0]()
    words = ["cat", "<sks>"]
    files[place] = {**files.get(place, {}), "additional_special_tokens": words}
    theirs = theirs_of(family, write(tmp_path, files))
    ours = load_huggingface_tokenizer(tmp_path)
    assert ours.vocab_size == len(theirs)
    assert_same_ids(ours, theirs)


def test_xlm_roberta_pieces(tmp_path):
    """sentencepiece.bpe.model and added_tokens.json, as its slow tokenizer saved them."""
    files: dict[str, bytes | dict] = {
        "sentencepiece.bpe.model": piece_model(unk_id=0, bos_id=1, eos_id=2),
        CONFIG: {"tokenizer_class": "XLMRobertaTokenizer"},
    }
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
    write(folder, {"tokenizer.json": gemma_json(), CONFIG: GEMMA_CONFIG | SIGLIP2})
    theirs = transformers.Siglip2Tokenizer.from_pretrained(folder)
    theirs.add_tokens(tokens)
    theirs.save_pretrained(tmp_path / "hf")
    theirs = transformers.Siglip2Tokenizer.from_pretrained(tmp_path / "hf")
    ours = load_huggingface_tokenizer(tmp_path / "hf").with_context_length(60)
    assert ours.vocab_size == len(theirs)
    for name, text in TEXTS.items():
        body = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours(text)[0].tolist() == ([*body, 1] + [0] * 60)[:60], (name, text)


# --- Kept through saving ------------------------------------------------------------------------


def model_with_tokens(family: str, folder: Path) -> tuple[Clip, Any]:
    theirs = with_tokens(family, folder)
    ours = load_huggingface_tokenizer(folder)
    if family == "siglip":
        from tiny_clip import TINY, nested, random_params

        from clip_jax.weights.layouts.huggingface_config import siglip_config

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
            for text in TEXTS.values():
                assert ids(again, text) == ids(theirs, text), (cls, text)
    back.save(tmp_path / "again", "huggingface")
    assert_same_ids(clip_jax.load(tmp_path / "again").tokenizer, theirs, cleaning=mode)


def test_convert_keeps_them(tmp_path):
    import subprocess
    import sys

    clip, theirs = model_with_tokens("clip", tmp_path / "hf")
    clip.save(tmp_path / "m", "huggingface")
    for n, format in enumerate(("clip_jax", "open_clip", "huggingface")):
        source = tmp_path / ("m" if n == 0 else f"c{n - 1}")
        command = [sys.executable, "-m", "clip_jax.convert", f"--source={source}"]
        command += [f"--format={format}", f"--output={tmp_path / f'c{n}'}"]
        subprocess.run(command, check=True, capture_output=True)
        assert_same_ids(clip_jax.load(tmp_path / f"c{n}").tokenizer, theirs)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_copies_are_equal(family, tmp_path):
    theirs = with_tokens(family, tmp_path / "hf")
    ours = load_huggingface_tokenizer(tmp_path / "hf").with_truncation(True)
    save_tokenizer(ours, tmp_path / "saved")
    for copy in (
        load_tokenizer(tmp_path / "saved"),
        tokenizer_from_files(*ours.to_files()),
        pickle.loads(pickle.dumps(ours)),
    ):
        assert copy.to_files() == ours.to_files()
        assert_same_ids(copy, theirs)


def test_words_that_open_clips_cleaning_leaves_alone_are_kept(tmp_path):
    """SigLIP in open_clip's layout: punctuation goes first, so the tokens must have none."""
    with_tokens("siglip", tmp_path / "hf", ["pallas", "sks"])
    ours = load_huggingface_tokenizer(tmp_path / "hf", cleaning="canonicalize")
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
    texts = [text for text in TEXTS.values() if text]
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


@pytest.mark.parametrize(
    ("family", "files", "said"),
    [
        ("clip", {ADDED: {"<sks>": 900}}, "'<sks>' has id 900"),
        ("bert", {ADDED: {"<sks>": 900}}, "'<sks>' has id 900"),
        ("roberta", {ADDED: {"<sks>": 900}}, "'<sks>' has id 900"),
        ("siglip", {ADDED: {"<sks>": 5}}, "'<sks>' has id 5"),
        ("clip", {ADDED: {"<sks>": "7"}}, "'<sks>' with id '7'"),
        ("clip", {ADDED: {"": 516}}, "added token ''"),
        ("bert", {CONFIG: {"added_tokens_decoder": {"x": {"content": "a"}}}}, "'x'"),
        ("bert", {CONFIG: {"added_tokens_decoder": {"9": "a"}}}, "'9'"),
        ("clip", {CONFIG: {"additional_special_tokens": [3]}}, "damaged"),
        ("clip", {ADDED: b"[1]"}, "added_tokens.json: expected an object"),
    ],
)
def test_files_that_contradict_themselves(family, files, said, tmp_path):
    all_files = FAMILIES[family][0]()
    for name, content in files.items():
        if isinstance(content, dict):
            content = {**all_files.get(name, {}), **content}
        all_files[name] = content
    with pytest.raises(UserError) as caught:
        load_huggingface_tokenizer(write(tmp_path, all_files))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pieces_that_only_a_tokenizer_json_explains(tmp_path):
    files = siglip_files() | {CONFIG: {"tokenizer_class": "T5Tokenizer"}}
    extra = [f"<extra_id_{n}>" for n in range(100)]
    files[SPECIAL_MAP] = {"additional_special_tokens": extra}
    assert load_huggingface_tokenizer(write(tmp_path, files)).vocab_size < 100
    own = {"3": {"content": "▁", "special": False}}  # the model's own, declared as well
    write(tmp_path, {CONFIG: {"tokenizer_class": "T5Tokenizer", "added_tokens_decoder": own}})
    assert load_huggingface_tokenizer(tmp_path).added_tokens == []
    write(tmp_path, {CONFIG: {"tokenizer_class": "T5Tokenizer"}, ADDED: {"<sks>": 70}})
    with pytest.raises(UserError, match=r"added tokens <sks>: .*tokenizer\.json"):
        load_huggingface_tokenizer(tmp_path)


def test_marks_of_structure_stay_text(tmp_path):
    """Beside added tokens, the names of the end of text and of padding are text as before."""
    for family in FAMILIES:
        with_tokens(family, tmp_path / family / "hf")
        ours = load_huggingface_tokenizer(tmp_path / family / "hf", context_length=60)
        for name in ("</s>", "<|endoftext|>", "[SEP]"):
            row = ours(f"{name} <sks> {name}a")[0].tolist()
            end = row.index(ours.eos_id)
            assert set(row[end + 1 :]) <= {ours.pad_id}, (family, name)
            plain = ours(f"{name}")[0].tolist()
            assert end > plain.index(ours.eos_id) + 1, (family, name)


@pytest.mark.parametrize("wrong", [0, 7, 500])
def test_ids_that_the_library_would_not_give_are_refused(wrong: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path / "hf", full_clip_files())
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    theirs.add_tokens(["<sks>"])
    theirs.save_pretrained(folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        if token["content"] == "<sks>":
            token["id"] = wrong
    config = json.loads((folder / CONFIG).read_text())
    config.pop("added_tokens_decoder", None)
    write(folder, {"tokenizer.json": spec, CONFIG: config})
    with pytest.raises(UserError, match=f"added token '<sks>' has id {wrong}, but in this"):
        load_huggingface_tokenizer(folder)
