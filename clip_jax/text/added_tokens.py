"""Tokens added to a vocabulary: their place in Hugging Face's files, and their matching in texts.

An added token is a dictionary, as in the list `added_tokens` of a tokenizer.json: `id`, `content`,
`single_word`, `lstrip`, `rstrip`, `normalized`, `special`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import models

from clip_jax.errors import UserError, first_line

ADDED_TOKENS_NAME = "added_tokens.json"
TOKENIZER_JSON_NAME = "tokenizer.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

AddedToken = dict[str, Any]


def role_names(config: Mapping[str, Any]) -> dict[str, str]:
    """{"bos": "<s>", ...} of a `tokenizer_config.json`: the tokens that mark a row's structure."""
    found = {}
    for role in _ROLES:
        token = config.get(f"{role}_token")
        name = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(name, str) and name:
            found[role] = name
    return found


def declared_tokens(
    config: Mapping[str, Any], special_map: Mapping[str, Any], added: Mapping[str, Any]
) -> tuple[list[AddedToken], list[AddedToken]]:
    """(tokens with an id, by id; tokens without, to which transformers gives the next ids).

    Args:
      config: content of tokenizer_config.json (`added_tokens_decoder`, names of special tokens).
      special_map: content of special_tokens_map.json.
      added: content of added_tokens.json, {token: id}.

    Raises:
      UserError: a token does not have the form that transformers writes.
    """
    names = _extra_names(config) + _extra_names(special_map)
    extra = {token["content"]: token for token in reversed(names)}
    # transformers does not treat tokens under special_tokens_map.json's older key as special.
    special = {token["content"] for token in _extra_names(config)}
    special |= {*role_names(special_map).values(), *role_names(config).values()}
    with_id: dict[str, AddedToken] = {}
    for content, index in added.items():
        is_special = content in special
        flags = {"normalized": not is_special, "special": is_special}
        with_id[content] = _token({"content": content, **flags}, index)
    for index, token in (config.get("added_tokens_decoder") or {}).items():
        if not isinstance(token, Mapping) or not str(index).isdigit():
            raise UserError(f"tokenizer_config.json: added_tokens_decoder[{index!r}]={token!r}")
        with_id[str(token.get("content"))] = _token(token, int(index))
    without = [token for content, token in reversed(extra.items()) if content not in with_id]
    pad = role_names({**special_map, **config}).get("pad")
    if pad is not None and pad not in with_id and pad not in extra:
        without.insert(0, _token({"content": pad, "special": True}, None))
    return sorted(with_id.values(), key=lambda token: token["id"]), without


def _extra_names(config: Mapping[str, Any]) -> list[AddedToken]:
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    if isinstance(extra, Mapping):
        extra = extra.values()
    tokens = ({"content": token} if isinstance(token, str) else token for token in extra)
    return [_token({**token, "special": True}, None) for token in tokens]


def _token(token: Mapping[str, Any], index: Any) -> AddedToken:
    content = token.get("content")
    numbered = index is None or (type(index) is int and index >= 0)
    if not isinstance(content, str) or not content or not numbered:
        raise UserError(f"added token {content!r} with id {index!r}: expected a text and its id")
    special = bool(token.get("special", False))
    flags = {flag: bool(token.get(flag, False)) for flag in _FLAGS}
    flags["normalized"] = bool(token.get("normalized", not special))
    return {**({} if index is None else {"id": index}), "content": content, **flags}


def load_backend(content: bytes) -> tokenizers.Tokenizer:
    """Content of a `tokenizer.json` -> the library's object. Raises UserError if it is invalid."""
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception for any damage
        raise UserError(f"{TOKENIZER_JSON_NAME} cannot be used: {first_line(error)}") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _as_library(token: Mapping[str, Any]) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token["content"], **{flag: token[flag] for flag in _FLAGS})


def added_tokens_of(backend: tokenizers.Tokenizer) -> list[AddedToken]:
    """The added tokens of a library tokenizer, by id."""
    found = sorted(backend.get_added_tokens_decoder().items())
    return [
        {"id": index, "content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
        for index, token in found
    ]


def add_tokens(
    backend: tokenizers.Tokenizer,
    with_id: Sequence[Mapping[str, Any]],
    without: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Adds tokens like transformers: by id, then those without one.

    Raises:
      UserError: an id differs from the library's, which numbers without gaps.
    """
    known = {token["content"] for token in added_tokens_of(backend)}
    new = [token for token in without if token["content"] not in known]
    backend.add_tokens([_as_library(token) for token in (*with_id, *new)])
    for token in with_id:
        _check_id(token, backend.token_to_id(token["content"]))


def _check_id(token: Mapping[str, Any], index: int | None) -> None:
    if index != token["id"]:
        raise UserError(
            f"added token {token['content']!r} has id {token['id']}, but in this vocabulary "
            f"transformers gives it {index}: the files do not belong together"
        )


def with_tokens(
    spec: dict[str, Any],
    with_id: Sequence[Mapping[str, Any]],
    without: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """A parsed `tokenizer.json` with more added tokens; unchanged if it has them all."""
    there = [{**token} for token in spec.get("added_tokens") or ()]
    contents = {token["content"] for token in there}
    has_all = all(token in there for token in with_id) and all(
        token["content"] in contents for token in without
    )
    words = (spec.get("model") or {}).get("vocab")
    # A token that is a word of the vocabulary has that word's id; the library numbers the others.
    is_plain = isinstance(words, dict) and all(
        words.get(token["content"]) == token["id"] for token in there
    )
    if has_all and is_plain:
        return spec
    backend = load_backend(json.dumps(spec).encode())
    for token in there:
        _check_id(token, backend.token_to_id(token["content"]))
    if has_all:
        return spec
    add_tokens(backend, with_id, without)
    return {**spec, "added_tokens": added_tokens_of(backend)}


class PythonSplitter:
    """Splits texts at added tokens like transformers' slow tokenizers: longest token first,
    character by character, without normalising the text."""

    def __init__(self, tokens: Iterable[Mapping[str, Any]]):
        self._tokens = {token["content"]: token for token in tokens}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split

    def __call__(self, text: str) -> list[str | int]:
        """A text -> its stretches and, as ids, the added tokens between them, in order."""
        parts = [part for part in self._cut(text) if part]
        for i, part in enumerate(parts):
            token = self._tokens.get(part)
            if token is None:
                continue
            left = parts[i - 1] if i > 0 else ""
            right = parts[i + 1] if i + 1 < len(parts) else ""
            if token["rstrip"] and right:
                parts[i + 1] = right.lstrip()
            if token["lstrip"] and left:
                parts[i - 1] = left.rstrip()
            if token["single_word"] and left and left[-1] != " ":
                parts[i - 1], parts[i] = parts[i - 1] + part, ""
            elif token["single_word"] and right and right[0] != " ":
                parts[i], parts[i + 1] = "", part + parts[i + 1]
        return [self._tokens[p]["id"] if p in self._tokens else p for p in parts if p]


class TokenSplitter:
    """Splits texts at added tokens exactly like the library's first step."""

    def __init__(self, tokens: Iterable[Mapping[str, Any]], normalizer: Any = None):
        """`normalizer`: a library object, or None."""
        tokens = list(tokens)
        # Each stretch of text between two added tokens becomes one unknown word.
        backend = tokenizers.Tokenizer(models.WordLevel({"\0": 0}, unk_token="\0"))
        if normalizer is not None:
            backend.normalizer = normalizer
        backend.add_tokens([_as_library(token) for token in tokens])
        self._ids = {backend.token_to_id(token["content"]): token["id"] for token in tokens}
        self._encode = backend.encode

    def __call__(self, text: str) -> list[str | int]:
        """A text -> its stretches and, as ids, the added tokens between them, in order."""
        encoding = self._encode(text, add_special_tokens=False)
        if len(encoding.ids) == 1 and encoding.ids[0] == 0:
            return [text]
        return [
            text[start:stop] if index == 0 else self._ids[index]
            for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
