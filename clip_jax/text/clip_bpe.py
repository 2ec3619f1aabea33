"""Byte-pair tokenizer of OpenAI's CLIP, with identical ids.

Source: Radford et al. 2021, section 2.4, and the `simple_tokenizer` that OpenAI released with it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import regex

from clip_jax.errors import UserError
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
    read_huggingface_merges,
    read_openai_merges,
)
from clip_jax.text.cleaning import clean_text, clean_words
from clip_jax.text.rows import Tokenizer, id_bytes

# A piece is a contraction, a run of letters, one number character, or a run of anything else.
_PIECE = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_STAND_INS = byte_symbols()
_TOKENS = ("bos_token", "eos_token", "added_tokens")
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


class ClipBpeTokenizer(Tokenizer):
    """OpenAI CLIP's tokenizer: texts -> int32 (N, context_length): BOS, ids, EOS, padding.

    A byte that a small vocabulary cannot spell is dropped.

    Args:
      merges: content of `bpe_simple_vocab_16e6.txt.gz` (see `find_bpe_file`); with `vocab`,
        content of Hugging Face's `merges.txt`.
      context_length, truncate, cleaning: see `Tokenizer`.
      special_strings: "encode" them as text, or "parse" them: OpenAI's tokenizer turns a literal
        "<|endoftext|>" into the special id, and Hugging Face's an unknown byte, too.
      vocab: content of Hugging Face's `vocab.json`, of any size.
      pad_id: OpenAI's is 0, which is also the token "!"; the text tower is causal and pools at
        EOS, so it never sees padding.
      added_tokens: tokens that a user added (see `added_tokens.py`); texts are split at them
        first, as in transformers, so cleaning leaves them alone. The one of `pad_id` stays text.
    """

    kind = "clip_bpe"
    options = (*Tokenizer.options, "special_strings", "pad_id", *_TOKENS)
    file_names: tuple[tuple[str, str], ...] = (("merges", BPE_FILE_NAME),)

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
        super().__init__(context_length, cleaning, truncate)
        if special_strings not in ("encode", "parse"):
            raise UserError(f"special_strings={special_strings!r}: accepted are encode, parse")
        self.special_strings = special_strings
        self.merges, self.vocab = merges, vocab
        if vocab is None:
            self.vocabulary = read_openai_merges(merges)
        else:
            self.file_names = (("merges", MERGES_FILE_NAME), ("vocab", VOCAB_FILE_NAME))
            self.vocabulary = read_huggingface_merges(vocab, merges)
        self.bos_token, self.eos_token = bos_token, eos_token
        self.vocab_size = max(self.vocabulary.ids.values()) + 1
        ends = [self.vocabulary.special_id(token) for token in (bos_token, eos_token)]
        found = self._set_row(ends[:1], ends[1:], pad_id, added_tokens)

        ids, parse = self.vocabulary.ids, special_strings == "parse"
        self._engine = self.vocabulary.engine(unk_token=eos_token if parse else None)
        # If so, every word has at least one id.
        self._spells_all = all(c in ids and c + END_OF_PIECE in ids for c in _STAND_INS.values())
        special = {text.lower(): ids[text] for text in (bos_token, eos_token)} if parse else {}
        pattern = "|".join([*map(regex.escape, special), _PIECE])
        self._find_pieces = regex.compile(pattern, regex.IGNORECASE).findall
        self._words = _Words(self._encode_word)
        self._words.update({text: id_bytes([i]) for text, i in special.items()})
        found = [*self.added_tokens] if parse else found
        self._split = TokenSplitter(found, clip_normalizer()) if found else None

    def _bodies(self, texts: list[str], cut: bool) -> Iterable[bytes]:
        for text in texts:
            if self._split is None:
                yield self._plain(text, cut)
            else:
                parts = self._split(clean_text(text, "none"))
                ids = [id_bytes([p]) if isinstance(p, int) else self._plain(p, cut) for p in parts]
                yield b"".join(ids)

    def _plain(self, text: str, cut: bool) -> bytes:
        words = clean_words(text, self.cleaning)
        # The rest of an endless caption can be skipped.
        if cut and len(words) > self.context_length and self._spells_all:
            words = words[: self.context_length]
        encoded = self._words
        return b"".join([encoded[word] for word in words])

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
        byte_of = {symbol: byte for byte, symbol in _STAND_INS.items()}
        symbols = {i: symbol for symbol, i in self.vocabulary.ids.items()}
        added = {token["id"]: token["content"] for token in self.added_tokens}
        text = bytearray()
        for i in self._body_of(ids):
            if i in added:
                text += f"{added[i]} ".encode()
                continue
            symbol = symbols.get(i, "")
            stem = symbol.removesuffix(END_OF_PIECE)
            if i not in self.prefix_ids:
                text += b"".join(bytes([byte_of[c]]) if c in byte_of else c.encode() for c in stem)
                text += b" " if stem != symbol else b""
        return text.decode("utf-8", errors="replace").strip()

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Inverse of `to_files`."""
        if VOCAB_FILE_NAME in files:
            return cls(files[MERGES_FILE_NAME], vocab=files[VOCAB_FILE_NAME], **spec["options"])
        return super().from_files(spec, files)
