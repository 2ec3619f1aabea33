"""Builders of a `tokenizer.json` from older Hugging Face files, equivalent to transformers'.

A SentencePiece model can be converted too, for export. All return the parsed file.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from clip_jax.errors import UserError
from clip_jax.text.added_tokens import add_tokens
from clip_jax.text.byte_pairs import BpeVocabulary

_CLIP_SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def clip_normalizer() -> Any:
    """Normalizer of transformers' CLIPTokenizer, which runs before it searches for added tokens."""
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    return normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])


def clip_spec(
    vocabulary: BpeVocabulary, bos: str, eos: str, added: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """`tokenizer.json` of a CLIP vocabulary and its added tokens, without ftfy and HTML
    unescaping."""
    # The library accepts a special token in `added_tokens` only if the model knows it too.
    engine = vocabulary.engine(continuing_subword_prefix="", fuse_unk=False, unk_token=eos)
    backend = tokenizers.Tokenizer(engine)
    backend.normalizer = clip_normalizer()
    split = pre_tokenizers.Split(tokenizers.Regex(_CLIP_SPLIT), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([bos, eos])
    add_tokens(backend, added)
    backend.post_processor = processors.RobertaProcessing(
        (eos, vocabulary.ids[eos]),
        (bos, vocabulary.ids[bos]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return json.loads(backend.to_str())


def wordpiece_spec(
    vocab_txt: bytes, config: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """`vocab.txt` of a BERT -> `tokenizer.json`. `config`: do_lower_case and related keys."""
    try:
        tokens = vocab_txt.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"vocab.txt is corrupted: {error}") from error
    if tokens and not tokens[-1]:
        tokens.pop()
    vocab = {token.removesuffix("\r"): i for i, token in enumerate(tokens)}
    special = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    special |= {key: names[key] for key in special if key in names}
    for key in ("unk", "sep", "cls"):
        if special[key] not in vocab:
            raise UserError(f"vocab.txt: lacks the special token {special[key]!r}")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=special["unk"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([token for token in special.values() if token in vocab])
    cls, sep = special["cls"], special["sep"]
    backend.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep], special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])]
    )
    return json.loads(backend.to_str())


def byte_level_spec(
    vocabulary: BpeVocabulary, config: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """`vocab.json` and `merges.txt` of a RoBERTa -> `tokenizer.json`."""
    cls, sep = names.get("cls", "<s>"), names.get("sep", "</s>")
    prefix_space = config.get("add_prefix_space", False)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary.ids, merges=vocabulary.merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    special = {cls, sep, "<pad>", "<unk>", *names.values()} & vocabulary.ids.keys()
    backend.add_special_tokens(sorted(special))
    backend.post_processor = processors.RobertaProcessing(
        (sep, vocabulary.special_id(sep)),
        (cls, vocabulary.special_id(cls)),
        add_prefix_space=prefix_space,
    )
    return json.loads(backend.to_str())


def unigram_spec(model: bytes, eos_id: int, lowercase: bool) -> dict[str, Any] | None:
    """A unigram SentencePiece model without its own normalisation -> `tokenizer.json`.

    None if the library has no equivalent: byte-pair models, and those with a character table.
    """
    from sentencepiece import sentencepiece_model_pb2 as layout  # needs protobuf

    proto = layout.ModelProto.FromString(model)  # type: ignore[attr-defined]
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    is_unigram = trainer.model_type == trainer.UNIGRAM
    if not is_unigram or normalizer.precompiled_charsmap or not normalizer.add_dummy_prefix:
        return None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    backend = tokenizers.Tokenizer(
        models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=trainer.byte_fallback)
    )
    steps: list[Any] = [normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    backend.normalizer = normalizers.Sequence(steps)
    spaces: Any = {"replacement": "▁", "prepend_scheme": "always"}
    backend.pre_tokenizer = pre_tokenizers.Metaspace(**spaces, split=False)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(**spaces)])
    control = [p.piece for i, p in enumerate(proto.pieces) if processor.is_control(i)]
    backend.add_special_tokens(control)
    eos = processor.id_to_piece(eos_id)
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", eos], special_tokens=[(eos, eos_id)]
    )
    return json.loads(backend.to_str())
