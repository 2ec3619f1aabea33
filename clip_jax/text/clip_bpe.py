"""Byte-pair tokenizer of OpenAI's CLIP, with identical ids.

Source: Radford et al. 2021, section 2.4, and the `simple_tokenizer` that OpenAI released with it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import regex

from clip_jax.text.added_tokens import TokenSplitter
from clip_jax.text.builders import clip_normalizer
from clip_jax.text.byte_pairs import (
    BOS_TOKEN,
    BPE_FILE_NAME,
    END_OF_PIECE,
    EOS_TOKEN,
    MERGES_FILE_NAME,
    VOCAB_FILE_NAME,
    byte_symbols,
    byte_values,
    make_engine,
    read_huggingface_merges,
    read_openai_merges,
)
from clip_jax.text.cleaning import clean_text, clean_words
from clip_jax.text.merges_file import BPE_FILE_SHA256, BPE_FILE_VARIABLE, find_bpe_file
from clip_jax.text.rows import RowTokenizer, id_bytes

__all__ = [
    "BPE_FILE_NAME",
    "BPE_FILE_SHA256",
    "BPE_FILE_VARIABLE",
    "ClipBpeTokenizer",
    "find_bpe_file",
]

# A piece is a contraction, a run of letters, one number character, or a run of anything else.
_PIECE = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_STAND_INS = dict(zip(byte_values(), byte_symbols(), strict=True))
_MAX_CACHED_WORDS = 1 << 17
_MAX_CACHED_CHARACTERS = 64


class _Words(dict[str, bytes]):
    """Cache of words' ids as bytes; words are independent, since pieces never cross white space."""

    def __init__(self, encode: Callable[[str], bytes]):
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        encoded = self._encode(word)
        if len(self) < _MAX_CACHED_WORDS and len(word) <= _MAX_CACHED_CHARACTERS:
            self[word] = encoded
        return encoded


class ClipBpeTokenizer(RowTokenizer):
    """OpenAI CLIP's tokenizer: texts -> int32 (N, context_length): BOS, ids, EOS, padding.

    It differs from OpenAI's in one point: a literal "<|endoftext|>" in a caption is ordinary text
    and never becomes the special id, which would move the position at which the text tower pools.
    `special_strings="parse"` gives OpenAI's behaviour.

    A byte that a small vocabulary cannot spell is dropped; with "parse" it becomes, as in Hugging
    Face, `unk_token`, which for CLIP is EOS.

    Args:
      merges: content of `bpe_simple_vocab_16e6.txt.gz` (see `find_bpe_file`); with `vocab`,
      content of Hugging Face's `merges.txt`.
      context_length: ids per row, BOS and EOS included; >= 2.
      truncate: cuts longer captions, keeping EOS as last id; otherwise they raise UserError.
      cleaning: a mode of `clip_jax.text.cleaning.clean_text`; CLIP's is "lower".
      special_strings: "encode" them as text or "parse" them into the special ids.
      vocab: content of Hugging Face's `vocab.json`, of any size.
      pad_id: OpenAI's is 0, which is also the token "!"; the text tower is causal and pools at
      EOS, so it never sees padding.
      added_tokens: tokens that a user added (see `added_tokens.py`); texts are split at them
      first, as in transformers, so cleaning leaves them alone. The one of `pad_id` stays text.
    """

    kind = "clip_bpe"

    def __init__(
        self,
        merges: bytes,
        context_length: int = 77,
        truncate: bool = False,
        cleaning: str = "lower",
        special_strings: str = "encode",
        vocab: bytes | None = None,
        pad_id: int = 0,
        bos_token: str = BOS_TOKEN,
        eos_token: str = EOS_TOKEN,
        added_tokens: Sequence[Mapping[str, Any]] = (),
    ):
        super().__init__(context_length, cleaning, truncate, special_strings)
        self.added_tokens = [dict(token) for token in added_tokens]
        self._files = {BPE_FILE_NAME: merges}
        if vocab is not None:
            self._files = {MERGES_FILE_NAME: merges, VOCAB_FILE_NAME: vocab}
        self.vocabulary = (
            read_openai_merges(merges) if vocab is None else read_huggingface_merges(vocab, merges)
        )
        self.bos_token, self.eos_token = bos_token, eos_token
        self.bos_id = self.vocabulary.special_id(bos_token)
        self.eos_id = self.vocabulary.special_id(eos_token)
        self.vocab_size = max(self.vocabulary.size, *(t["id"] + 1 for t in self.added_tokens), 0)
        self.pad_id = pad_id
        self._prefix, self._suffix = (self.bos_id,), (self.eos_id,)
        self._check_row()

        ids, self._engine = self.vocabulary.ids, self.vocabulary.engine
        # If so, every word has at least one id.
        self._spells_all = all(c in ids and c + END_OF_PIECE in ids for c in byte_symbols())
        special: dict[str, int] = {}
        if special_strings == "parse":
            self._engine = make_engine(ids, self.vocabulary.merges, unk_token=eos_token)
            special = {text.lower(): ids[text] for text in (bos_token, eos_token)}
        pattern = "|".join([*map(regex.escape, special), _PIECE])
        self._find_pieces = regex.compile(pattern, regex.IGNORECASE).findall
        self._words = _Words(self._encode_word)
        self._words.update({text: id_bytes([i]) for text, i in special.items()})
        found = [t for t in self.added_tokens if t["id"] != pad_id or special_strings == "parse"]
        self._split = TokenSplitter(found, clip_normalizer()) if found else None

    def _bodies(self, texts: list[str], cut: bool) -> Iterable[bytes]:
        if self._split is not None:
            for text in texts:
                parts = self._split(clean_text(text, "none"))
                yield b"".join(
                    id_bytes([p]) if isinstance(p, int) else b"".join(self._plain([p], cut))
                    for p in parts
                )
            return
        yield from self._plain(texts, cut)

    def _plain(self, texts: list[str], cut: bool) -> Iterable[bytes]:
        encoded, most, cleaning = self._words, self.context_length, self.cleaning
        for text in texts:
            words = clean_words(text, cleaning)
            # The rest of an endless caption can be skipped.
            if cut and len(words) > most and self._spells_all:
                words = words[:most]
            yield b"".join([encoded[word] for word in words])

    def _encode_word(self, word: str) -> bytes:
        """Characters without white space -> bytes of their int32 ids."""
        if word.isascii() and word.isalpha():  # usually one piece
            return self._encode_piece(word)
        known = self._words.get
        pieces = self._find_pieces(word)
        return b"".join([known(piece) or self._encode_piece(piece) for piece in pieces])

    def _encode_piece(self, piece: str) -> bytes:
        """Ids of a piece as bytes; merges the lowest-ranked pair, leftmost first, in O(n log n)."""
        if not piece.isalnum() or not piece.isascii():
            piece = piece.encode("utf-8").decode("latin-1").translate(_STAND_INS)
        return id_bytes([token.id for token in self._engine.tokenize(piece)])

    def decode(self, ids: Iterable[int]) -> str:
        """Ids of one text -> lower-cased text with a space after each piece's last token.

        Stops at the first EOS; drops BOS and ids that the vocabulary lacks.
        """
        byte_of = dict(zip(byte_symbols(), byte_values(), strict=True))
        symbols = {i: symbol for symbol, i in self.vocabulary.ids.items()}
        added = {token["id"]: token["content"] for token in self.added_tokens}
        text = bytearray()
        for i in self._body_of(ids):
            if i in added:
                text += f"{added[i]} ".encode()
                continue
            symbol = symbols.get(i, "")
            stem = symbol.removesuffix(END_OF_PIECE)
            if i != self.bos_id:
                text += b"".join(bytes([byte_of[c]]) if c in byte_of else c.encode() for c in stem)
                text += b" " if stem != symbol else b""
        return text.decode("utf-8", errors="replace").strip()

    def _options(self) -> dict[str, Any]:
        return super()._options() | {
            "pad_id": self.pad_id,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **({"added_tokens": self.added_tokens} if self.added_tokens else {}),
        }

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(JSON-serialisable spec, {file name: content}); inverse of `tokenizer_from_files`."""
        return {"kind": self.kind, "options": self._options()}, dict(self._files)

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Inverse of `to_files`."""
        if VOCAB_FILE_NAME in files:
            return cls(files[MERGES_FILE_NAME], vocab=files[VOCAB_FILE_NAME], **spec["options"])
        return cls(files[BPE_FILE_NAME], **spec["options"])
