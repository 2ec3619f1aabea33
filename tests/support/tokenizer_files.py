"""Small vocabularies as Hugging Face's files, for the tests of tokenizers."""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from places import SHARED_DATA
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from clip_jax.text.byte_pairs import BPE_FILE_NAME, byte_symbols

BPE_FILE = SHARED_DATA / "clip_bpe" / BPE_FILE_NAME
TEXTS = ["a cat on a mat", "", "A CAT'S low mat", "lower lowest newer"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONFIG, SPECIAL_MAP = "tokenizer_config.json", "special_tokens_map.json"
ADDED = "added_tokens.json"
Files = dict[str, bytes | dict]


def write(folder: Path, files: Files) -> Path:
    """Writes bytes as they are and dictionaries as JSON; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    return folder


def of_class(name: str, files: Files) -> Files:
    return files | {CONFIG: {"tokenizer_class": name}}


def byte_pair_files(name: str, symbols: Iterable[str], merges: Iterable[str]) -> Files:
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    lines = "\n".join(["#version: 0.2", *merges, ""])
    return of_class(name, {"vocab.json": vocab, "merges.txt": lines.encode()})


def clip_files(letters: str = LETTERS + "'") -> Files:
    """A CLIP vocabulary of some letters and a few merges."""
    merges = ["l o", "lo w</w>", "lo w", "e r</w>", "a t</w>"]
    symbols = [*letters, *(f"{c}</w>" for c in letters), *(m.replace(" ", "") for m in merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    files = byte_pair_files("CLIPTokenizer", symbols, merges)
    files[CONFIG]["model_max_length"] = 20
    return files


def full_clip_files() -> Files:
    """With every byte, so that nothing is unknown (to transformers that is the end of text)."""
    single = [*byte_symbols().values()]
    symbols = [*single, *(f"{c}</w>" for c in single), "ca", "cat</w>"]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    return byte_pair_files("CLIPTokenizer", symbols, ["c a", "ca t</w>"])


def bert_files(*words: str) -> Files:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = LETTERS + "[]'"
    tokens = [*special, *letters, *(f"##{c}" for c in letters), "cat", "mat", *words]
    return of_class("BertTokenizer", {"vocab.txt": "\n".join(tokens).encode()})


def roberta_files() -> Files:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    symbols = [*special, *byte_symbols().values(), "ca", "cat", "lo", "low", "<mask>"]
    return byte_pair_files("RobertaTokenizer", symbols, ["c a", "ca t", "l o", "lo w"])


def siglip_files() -> Files:
    model = piece_model(pad_id=0, eos_id=1, bos_id=-1, unk_id=2)
    return of_class("SiglipTokenizer", {"spiece.model": model})


def xlm_files() -> Files:
    model = piece_model(unk_id=0, bos_id=1, eos_id=2)
    return of_class("XLMRobertaTokenizer", {"sentencepiece.bpe.model": model})


def piece_model(texts: Iterable[str] = (), **options) -> bytes:
    """Content of a SentencePiece model."""
    model = io.BytesIO()
    usual = [*TEXTS, "low cat </s> <eos> ! , . _ the quick brown fox"] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts or usual),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **({"vocab_size": 70} | options),
    )
    return model.getvalue()


def unigram_json(*, special: bool) -> bytes:
    """A tokenizer.json whose model holds its special tokens as pieces, like those of T5."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in LETTERS + "<>/"]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], special_tokens=[("</s>", 1)]
    )
    add = backend.add_special_tokens if special else backend.add_tokens
    add(["<pad>", "</s>", "<unk>", "<mask>"])
    return backend.to_str().encode()


def word_level_json() -> bytes:
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[SEP]": 1, "[UNK]": 2, "cat": 3}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_tokens(["[SEP]"])
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", "[SEP]"], special_tokens=[("[SEP]", 1)]
    )
    return backend.to_str().encode()


def gemma_files() -> Files:
    """Byte-pair like Gemma's: BOS first by the file, no lower-casing."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, "<", ">"]
    vocab = {t: i for i, t in enumerate([*tokens, "ca", "cat"])}
    merges = [("c", "a"), ("ca", "t")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Replace("▁", " ")
    backend.add_special_tokens(tokens[:5])
    backend.post_processor = processors.TemplateProcessing(
        single=["<bos>", "$A"], special_tokens=[("<bos>", 2)]
    )
    return {"tokenizer.json": backend.to_str().encode(), CONFIG: GEMMA_CONFIG}


GEMMA_CONFIG = {"tokenizer_class": "GemmaTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
