"""SentencePiece tokenizers: training from captions, and use of any `.model` file.

Source: Kudo 2018 (unigram language model); SigLIP and SigLIP 2 use such vocabularies.
"""

import io
import itertools
import logging
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sentencepiece

from clip_jax.errors import UserError
from clip_jax.text.added_tokens import PythonSplitter, TokenSplitter
from clip_jax.text.cleaning import check_cleaning, clean_text
from clip_jax.text.rows import Tokenizer, id_bytes

logger = logging.getLogger(__name__)

MODEL_FILE_NAME = "tokenizer.model"
# The reserved pieces are pad, unk, EOS and one per byte.
_NUM_RESERVED_PIECES = 3 + 256
# SentencePiece drops longer lines (4,192 bytes); rows of ids are far shorter anyway.
_MAX_TRAINING_CHARACTERS = 1000
_FAIRSEQ_IDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
_SPACE = "▁"  # as written in the models
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MIN_VOCAB_SIZE = _NUM_RESERVED_PIECES + 16


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model: texts -> int32 (N, context_length): [BOS,] ids, EOS, padding.

    Args:
      model: content of a SentencePiece `.model` file.
      context_length, cleaning, truncate: see `Tokenizer`.
      add_bos: puts the BOS id first.
      pad_id: None takes the model's; SigLIP pads with its EOS id.
      fairseq_ids: numbers pieces like XLM-RoBERTa: 0 BOS, 1 padding, 2 EOS, 3 unknown, then the
        model's pieces from the fourth on, one higher than in the model, and a mask id last.
      added_tokens: tokens that a user added (see `added_tokens.py`), matched as in transformers'
        SiglipTokenizer, or with `fairseq_ids` XLMRobertaTokenizer: before SigLIP's own cleaning,
        after any other. The one of `pad_id` stays text.
    """

    kind = "sentencepiece"
    options = (*Tokenizer.options, "add_bos", "pad_id", "fairseq_ids", "added_tokens")
    file_names = (("model", MODEL_FILE_NAME),)

    def __init__(
        self,
        model: bytes,
        context_length: int = 64,
        cleaning: str = "lower",
        add_bos: bool = False,
        pad_id: int | None = None,
        truncate: bool = False,
        fairseq_ids: bool = False,
        added_tokens: Sequence[Mapping[str, Any]] = (),
    ):
        super().__init__(context_length, cleaning, truncate)
        self._processor = processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = processor.LoadFromSerializedProto(model)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"{MODEL_FILE_NAME} is not a SentencePiece model: {error}") from error
        if not loaded or processor.vocab_size() == 0:
            raise UserError(f"{MODEL_FILE_NAME} is not a SentencePiece model")
        self.model, self.add_bos, self.fairseq_ids = model, add_bos, fairseq_ids
        self.vocab_size: int = processor.vocab_size() + (2 if fairseq_ids else 0)
        self.unk_id: int = processor.unk_id()
        bos, pad, eos = processor.bos_id(), processor.pad_id(), processor.eos_id()
        if fairseq_ids:
            bos, pad, eos = 0, 1, 2
        for name, value in (("eos_id", eos), *([("bos_id", bos)] if add_bos else [])):
            if not 0 <= value < self.vocab_size:
                raise UserError(f"{name}={value} is not among this SentencePiece model's ids")
        prefix, pad_id = ([bos] if add_bos else []), (pad if pad_id is None else pad_id)
        found = self._set_row(prefix, [eos], pad_id, added_tokens)
        splitter = TokenSplitter if fairseq_ids else PythonSplitter
        self._split = splitter(found) if found else None

    def piece(self, index: int) -> str:
        """The name of one of the model's own ids."""
        return self._processor.id_to_piece(index)

    def marks(self) -> set[str]:
        """Names of the ids that mark a row's structure: control symbols and the unknown piece."""
        model = self._processor
        own = (i for i in range(model.vocab_size()) if model.is_control(i) or model.is_unknown(i))
        return {*map(self.piece, own), *(("<pad>", "<mask>") if self.fairseq_ids else ())}

    def find_piece(self, piece: str) -> int | None:
        """The id of a piece in the tokenizer's own numbering, or None."""
        if self.fairseq_ids and piece in _FAIRSEQ_IDS:
            return _FAIRSEQ_IDS[piece]
        found = self._processor.piece_to_id(piece)
        if self.piece(found) == piece:
            return found + 1 if self.fairseq_ids else found
        mask = self._processor.vocab_size() + 1
        return mask if self.fairseq_ids and piece == "<mask>" else None

    def _bodies(self, texts: list[str], cut: bool) -> Iterable[bytes]:
        if self._split is not None:
            return [id_bytes(self._with_added(text)) for text in texts]
        cleaned = [clean_text(text, self.cleaning) for text in texts]
        # One thread is enough: data workers call this in parallel, each on its own core.
        rows = self._processor.encode(cleaned, out_type=int, num_threads=1) if texts else []
        return [id_bytes(self._renumber(ids)) for ids in rows]

    def _with_added(self, text: str) -> list[int]:
        """Ids of a text, in which added tokens are matched."""
        assert self._split is not None
        text = clean_text(text, "none" if self.cleaning == "siglip" else self.cleaning)
        if not self.fairseq_ids:
            text = f"{_SPACE}{text.replace(_SPACE, ' ')}"
        ids: list[int] = []
        for part in self._split(text):
            if isinstance(part, int):
                ids.append(part)
            elif self.fairseq_ids:
                ids += self._renumber(self._processor.encode(part))
            else:
                ids += self._stretch(part)
        return ids

    def _stretch(self, text: str) -> list[int]:
        """Ids of a part of a text as in SiglipTokenizer: after an added token the first word has no
        leading space, and a piece with an added token's name is that token."""
        if self.cleaning == "siglip":
            text = text.lower().translate(_PUNCTUATION)
        words = " ".join(text.split())
        unknown = self.piece(self.unk_id)
        skipped = len(self._processor.encode(unknown))
        pieces = self._processor.encode(unknown + words, out_type=str)[skipped:]
        added = {token["content"]: token["id"] for token in self.added_tokens}
        return [added.get(piece, self._processor.piece_to_id(piece)) for piece in pieces]

    def _renumber(self, ids: list[int]) -> list[int]:
        if not self.fairseq_ids:
            return ids
        return [3 if i == self.unk_id else i + 1 for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids of one text -> cleaned text up to the first EOS, without BOS and padding."""
        kept = [i for i in self._body_of(ids) if i not in (*self.prefix_ids, self.pad_id)]
        added = {token["id"]: token["content"] for token in self.added_tokens}
        parts = []
        for is_added, group in itertools.groupby(kept, added.__contains__):
            stretch = list(group)
            parts += [added[i] for i in stretch] if is_added else [self._decode(stretch)]
        return " ".join(part for part in parts if part)

    def _decode(self, ids: list[int]) -> str:
        pieces = self._processor.vocab_size()
        if self.fairseq_ids:
            ids = [self.unk_id if i == 3 else i - 1 for i in ids if 3 <= i <= pieces]
        return self._processor.decode(ids)


def train_sentencepiece(
    captions: Iterable[str],
    vocab_size: int,
    context_length: int = 64,
    cleaning: str = "lower",
) -> SentencePieceTokenizer:
    """Trains a unigram vocabulary on the distinct cleaned captions, in the order first seen.

    Equal captions in equal order give the same model, byte for byte. Ids: 0 padding, 1 unknown,
    2 EOS, then 256 bytes (which spell characters outside the vocabulary, so nothing is lost), then
    the learned pieces; there is no BOS.

    Args:
      captions: at least one must remain after cleaning; only their first 1,000 characters count.
      vocab_size: requested number of ids, including the 259 above; few captions give fewer,
        which is logged (`.vocab_size` of the result is the actual number).
      context_length: ids per row, EOS included.
      cleaning: a mode of `clip_jax.text.cleaning.clean_text`.

    Raises:
      UserError: no captions, or a vocabulary too small for the 259 reserved ids.
    """
    check_cleaning(cleaning)
    if vocab_size < _MIN_VOCAB_SIZE:
        raise UserError(
            f"vocab_size={vocab_size}: accepted is >= {_MIN_VOCAB_SIZE} "
            f"({_NUM_RESERVED_PIECES} ids are reserved for padding, unknown, EOS and the bytes)"
        )
    distinct = dict.fromkeys(
        clean_text(caption, cleaning)[:_MAX_TRAINING_CHARACTERS] for caption in captions
    )
    distinct.pop("", None)
    if not distinct:
        raise UserError("no captions to train a tokenizer on: all are missing or empty")
    most = (vocab_size - _NUM_RESERVED_PIECES) // 2
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_without_rare_characters(list(distinct), most)),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=2,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",  # captions are already clean
            input_sentence_size=0,
            shuffle_input_sentence=False,
            num_threads=1,  # with more, the order of float sums would vary
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"no vocabulary of vocab_size={vocab_size} could be trained on {len(distinct)} "
            f"captions: {reason}"
        ) from error
    tokenizer = SentencePieceTokenizer(model.getvalue(), context_length, cleaning)
    level = logging.INFO if tokenizer.vocab_size == vocab_size else logging.WARNING
    text = "tokenizer: %d pieces (vocab_size=%d asked for) from %d distinct captions"
    logger.log(level, text, tokenizer.vocab_size, vocab_size, len(distinct))
    return tokenizer


def _without_rare_characters(captions: list[str], most: int) -> list[str]:
    """The captions, with all but their `most` commonest characters replaced by spaces.

    Characters that training never sees are spelled in bytes. SentencePiece gives every character
    its own piece (at least 98 % of the running text), which for a few Chinese captions exceeds a
    small vocabulary.
    """
    counts = Counter(itertools.chain.from_iterable(captions))
    rare = dict.fromkeys((ord(c) for c, _ in counts.most_common()[most:]), " ")
    return [caption.translate(rare) for caption in captions] if rare else captions
