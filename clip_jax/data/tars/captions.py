"""Selection and decoding of the members of a tar sample that hold its captions."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import CaptionError, check_unicode, decode_caption

CAPTION_FIELDS = ("caption", "text")  # of a .json, if there is no .txt
SEVERAL_FIELD = "captions"  # of a .json: a list, which wins over .txt

MAX_TEXT_BYTES = 4 << 20  # a "caption" beyond this is an accident or an attack


class Member(NamedTuple):
    """Byte range of a file in its archive."""

    offset: int
    size: int


ReadMember = Callable[[Member], bytes]


class Captions(NamedTuple):
    """Captions of one sample; `needs_json`: .txt alone does not give them."""

    texts: tuple[str, ...]
    weights: tuple[float, ...] | None
    needs_json: bool


@dataclass(frozen=True)
class CaptionReader:
    """Reads captions. Without columns: the list "captions" of the .json, or the .txt, or "caption"
    or "text" of the .json. Each column: the ending of a text member (txt) or a .json field."""

    options: SourceOptions

    def read(
        self, texts: Mapping[str, Member], json_member: Member | None, read: ReadMember
    ) -> Captions:
        """Reads the captions of one sample; `texts`: its text members by ending.

        If none is usable: raises CaptionError, or returns none without `needs_captions`.
        """
        try:
            return self._needed(texts, json_member, read)
        except CaptionError:
            if self.options.needs_captions:
                raise
            # The .json, if any, is marked as needed so that a later read has the same result.
            return Captions((), None, json_member is not None)

    def _needed(
        self, texts: Mapping[str, Member], json_member: Member | None, read: ReadMember
    ) -> Captions:
        fields = read_json(json_member, read)
        columns = self.options.caption_columns
        if columns:
            return self._of_columns(columns, texts, fields, read)
        several = fields.get(SEVERAL_FIELD)
        if isinstance(several, list):
            found = tuple(
                check_unicode(text) for text in several if isinstance(text, str) and text.strip()
            )
            if found:
                return Captions(found, None, True)
        if "txt" in texts:
            return Captions((read_text(texts["txt"], read),), None, False)
        for name in CAPTION_FIELDS:
            if isinstance(fields.get(name), str) and fields[name].strip():
                return Captions((check_unicode(fields[name]),), None, True)
        raise CaptionError(
            "caption is missing (no .txt, no .json with caption or text)", "caption_missing"
        )

    def _of_columns(
        self,
        columns: tuple[str, ...],
        texts: Mapping[str, Member],
        fields: Mapping[str, Any],
        read: ReadMember,
    ) -> Captions:
        found: dict[str, str] = {}
        problem = None
        for name in columns:
            try:
                if name in texts:
                    found[name] = read_text(texts[name], read)
                elif isinstance(fields.get(name), str):
                    found[name] = check_unicode(fields[name])
            except CaptionError as error:
                problem = error
        usable = [[found[name]] if found.get(name, "").strip() else [] for name in columns]
        chosen, weights = self.options.chosen(usable)
        if chosen:
            return Captions(chosen, weights, any(name not in texts for name in columns))
        if problem is not None:
            raise problem
        there = [f".{ending}" for ending in texts] + [f"{name} (.json)" for name in fields]
        raise CaptionError(
            f"caption is missing (no {', '.join(columns)}; there are"
            f" {', '.join(there[:20]) or 'none'})",
            "caption_missing",
        )


def read_text(member: Member, read: ReadMember) -> str:
    """Returns the caption in a member. Raises CaptionError if it is unusable."""
    if member.size > MAX_TEXT_BYTES:
        raise CaptionError(f"caption of {member.size} bytes", "caption_too_long")
    return decode_caption(read(member))


def read_json(member: Member | None, read: ReadMember) -> dict[str, Any]:
    """Returns the JSON object in a member; {} if it is absent or invalid."""
    if member is None or member.size > MAX_TEXT_BYTES:
        return {}
    try:
        value = json.loads(read(member).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
