"""The byte-pair tokenizer of OpenAI's CLIP, id for id.

Source: Radford et al. 2021, section 2.4, and the `simple_tokenizer` that OpenAI released with it.
"""

import gzip
import hashlib
import heapq
import importlib.util
import itertools
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import regex

from clip_jax.data.text_cleaning import (
    as_text_list,
    check_cleaning,
    check_context_length,
    clean_text,
    pack_ids,
)
from clip_jax.errors import UserError

BPE_FILE_NAME = "bpe_simple_vocab_16e6.txt.gz"
BPE_FILE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
BPE_FILE_VARIABLE = "CLIP_JAX_BPE"

NUM_MERGES = 48_894
VOCAB_SIZE = 512 + NUM_MERGES + 2
BOS_ID = VOCAB_SIZE - 2
EOS_ID = VOCAB_SIZE - 1
# Id 0 is also the real token "!": the text tower is causal and pools at EOS, so padding is unseen.
PAD_ID = 0

# A contraction, a run of letters, one number character, or a run of anything else.
_PIECE = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
_SPECIAL_IDS = {"<|startoftext|>": BOS_ID, "<|endoftext|>": EOS_ID}
_SPECIAL_OR_PIECE = regex.compile(
    "|".join(regex.escape(s) for s in _SPECIAL_IDS) + "|" + _PIECE.pattern, regex.IGNORECASE
)
_MAX_CACHED_PIECES = 1 << 17


def find_bpe_file(path: str | Path | None = None) -> Path:
    """The verified merges file of CLIP: `bpe_simple_vocab_16e6.txt.gz`.

    Looks at `path`; else at the environment variable CLIP_JAX_BPE; else in ~/.cache/clip_jax; else
    inside an installed `open_clip` or `clip` package (found, not imported).

    Raises:
      UserError: there is none, or its SHA-256 is not that of OpenAI's file.
    """
    if path is not None:
        return _verified(Path(path), "the given path")
    if named := os.environ.get(BPE_FILE_VARIABLE):
        return _verified(Path(named), f"the environment variable {BPE_FILE_VARIABLE}")
    cached = Path.home() / ".cache" / "clip_jax" / BPE_FILE_NAME
    for candidate in (cached, *_package_candidates()):
        if candidate.is_file():
            return _verified(candidate, "the search for the file")
    raise UserError(
        f"CLIP's merges file {BPE_FILE_NAME} was not found: place it at {cached} or set "
        f"{BPE_FILE_VARIABLE} to its path (it is in github.com/openai/CLIP, folder clip/; "
        f"SHA-256 {BPE_FILE_SHA256})"
    )


def _package_candidates() -> Iterable[Path]:
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(folder) / BPE_FILE_NAME


def _verified(path: Path, origin: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path} (from {origin}) is not a file; expected {BPE_FILE_NAME} of CLIP")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != BPE_FILE_SHA256:
        raise UserError(
            f"{path} (from {origin}) has SHA-256 {digest}; CLIP's {BPE_FILE_NAME} has "
            f"{BPE_FILE_SHA256}"
        )
    return path


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-in of each byte, in the order in which CLIP numbers them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def _byte_values() -> list[int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [b for b in range(256) if b not in set(printable)]


@lru_cache(maxsize=2)
def _read_merges(merges: bytes) -> tuple[list[str], dict[tuple[int, int], int]]:
    """Content of the merges file -> (symbol of each id, {pair of ids: merged id}).

    A merged id grows with the rank of its merge, so it also says which merge comes first.
    """
    try:
        lines = gzip.decompress(merges).decode("utf-8").split("\n")[1 : NUM_MERGES + 1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{BPE_FILE_NAME} is corrupted: {error}") from error
    pairs = [tuple(line.split()) for line in lines]
    if len(pairs) != NUM_MERGES or any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{BPE_FILE_NAME} is corrupted: expected {NUM_MERGES} lines of two symbols")
    single = _byte_symbols()
    symbols = [*single, *(s + "</w>" for s in single), *("".join(pair) for pair in pairs)]
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    try:
        merged = {(ids[a], ids[b]): 512 + rank for rank, (a, b) in enumerate(pairs)}
    except KeyError as error:
        raise UserError(f"{BPE_FILE_NAME} is corrupted: unknown symbol {error}") from error
    return [*symbols, *_SPECIAL_IDS], merged


class ClipBpeTokenizer:
    """OpenAI CLIP's tokenizer: texts -> int32 (N, context_length): BOS, ids, EOS, zeros.

    Differs from OpenAI's in one point: a literal "<|endoftext|>" in a caption is ordinary text and
    never becomes the special id, because that would move the position at which the text tower
    pools. `special_strings="parse"` gives OpenAI's behaviour.

    Args:
      merges: content of `bpe_simple_vocab_16e6.txt.gz` (see `find_bpe_file`).
      context_length: ids a row, BOS and EOS included; >= 2.
      truncate: cut a longer caption, its last id being EOS; otherwise it is a UserError.
      cleaning: a mode of `clip_jax.data.text_cleaning.clean_text`; CLIP's is "lower".
      special_strings: "encode" as text or "parse" into the special ids.
    """

    kind = "clip_bpe"
    vocab_size = VOCAB_SIZE
    bos_id = BOS_ID
    eos_id = EOS_ID
    pad_id = PAD_ID

    def __init__(
        self,
        merges: bytes,
        context_length: int = 77,
        truncate: bool = True,
        cleaning: str = "lower",
        special_strings: str = "encode",
    ):
        if special_strings not in ("encode", "parse"):
            raise UserError(f"special_strings={special_strings!r}: accepted are encode, parse")
        self.context_length = check_context_length(context_length, smallest=2)
        self.truncate = truncate
        self.cleaning = check_cleaning(cleaning)
        self.special_strings = special_strings
        self._merges = merges
        self._symbols, self._merged = _read_merges(merges)
        self._byte_id = {byte: i for i, byte in enumerate(_byte_values())}
        self._cache: dict[str, list[int]] = {}
        self._pattern = _PIECE
        if special_strings == "parse":
            self._pattern = _SPECIAL_OR_PIECE
            self._cache = {text: [i] for text, i in _SPECIAL_IDS.items()}

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Texts (N) -> int32 (N, context_length).

        Raises:
          UserError: a caption is too long and `truncate` is off.
        """
        rows = [self._encode_row(text) for text in as_text_list(texts)]
        return pack_ids(rows, self.context_length, EOS_ID, PAD_ID)

    def _encode_row(self, text: str) -> list[int]:
        ids = [BOS_ID]
        for match in self._pattern.finditer(clean_text(text, self.cleaning)):
            piece = match.group()
            ids.extend(self._cache.get(piece) or self._encode_piece(piece))
            # The rest of an endless caption need not be looked at.
            if len(ids) >= self.context_length:
                break
        ids.append(EOS_ID)
        if len(ids) > self.context_length and not self.truncate:
            raise UserError(
                f"caption {text[:60]!r} has more than context_length={self.context_length} tokens; "
                "accepted are shorter captions or truncate=True"
            )
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        """Merges the pair of lowest rank, leftmost first, until none is left: O(n log n).

        One heap for all pairs is exact since the pairs that a merge creates rank behind it. A plain
        loop over the piece is O(n²), which a caption of 100,000 equal letters turns into minutes.
        """
        ids = [self._byte_id[byte] for byte in piece.encode("utf-8")]
        ids[-1] += 256  # the same byte with </w>
        end = len(ids)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        merged = self._merged
        heap = [
            (merged[pair], i) for i, pair in enumerate(itertools.pairwise(ids)) if pair in merged
        ]
        heapq.heapify(heap)
        while heap:
            new, i = heapq.heappop(heap)
            j = after[i]
            # An entry is stale if either half has since been merged away.
            if ids[i] < 0 or j >= end or merged.get((ids[i], ids[j])) != new:
                continue
            ids[i], ids[j], after[i] = new, -1, after[j]
            if after[i] < end:
                before[after[i]] = i
            for left in (before[i], i):
                right = after[left] if left >= 0 else end
                if right < end and (rank := merged.get((ids[left], ids[right]))) is not None:
                    heapq.heappush(heap, (rank, left))
        result = [i for i in ids if i >= 0]
        if len(self._cache) < _MAX_CACHED_PIECES and len(piece) <= 64:
            self._cache[piece] = result
        return result

    def decode(self, ids: Iterable[int]) -> str:
        """Ids of one text -> the text, lower-cased and with a space after each piece's last token.

        Stops at the first EOS; BOS is left out.
        """
        byte_of = dict(zip(_byte_symbols(), _byte_values(), strict=True))
        text = bytearray()
        for i in (int(i) for i in ids):
            if i == EOS_ID:
                break
            if i != BOS_ID:
                symbol = self._symbols[i]
                stem = symbol.removesuffix("</w>")
                text += bytes(byte_of[c] for c in stem)
                text += b" " if stem != symbol else b""
        return text.decode("utf-8", errors="replace").strip()

    def with_context_length(self, context_length: int) -> "ClipBpeTokenizer":
        """The same tokenizer with rows of `context_length` ids."""
        return ClipBpeTokenizer(
            self._merges, **{**self._options(), "context_length": context_length}
        )

    def _options(self) -> dict[str, Any]:
        return {
            "context_length": self.context_length,
            "truncate": self.truncate,
            "cleaning": self.cleaning,
            "special_strings": self.special_strings,
        }

    def to_files(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(JSON-able spec, {file name: content}); `tokenizer_from_files` is the inverse."""
        return {"kind": self.kind, "options": self._options()}, {BPE_FILE_NAME: self._merges}

    @classmethod
    def from_files(cls, spec: Mapping[str, Any], files: Mapping[str, bytes]) -> "ClipBpeTokenizer":
        """Inverse of `to_files`."""
        return cls(files[BPE_FILE_NAME], **spec["options"])

    def __reduce__(self):
        return ClipBpeTokenizer.from_files, self.to_files()
