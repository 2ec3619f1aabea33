"""Wrapper of a source that cleans captions and filters samples by rules.

A filtered sample costs a read each time it comes up; another record then takes its place.
"""

import html
import re
from typing import Any

import numpy as np

from clip_jax.data.options import CaptionOptions, FilterOptions, SourceConfig
from clip_jax.data.records import Drops, Record, Source, fingerprint_of, split_of
from clip_jax.data.sources import open_source
from clip_jax.errors import DecodeError
from clip_jax.images.decoding import open_header
from clip_jax.images.perceptual_hash import HashList

_TAG = re.compile(r"</?[A-Za-z!][^<>]{0,200}>")
_URL = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
_MAIL = re.compile(r"\S+@\S+\.\w+")
_FILE = re.compile(
    r"\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic|pdf|html?|php|aspx?)\b", re.IGNORECASE
)
_CAMERA = re.compile(r"\b(?:img|dsc|dscn|dscf|pict|pxl|screenshot|image)[_\- ]?\d{2,}\w*", re.I)
_EDGES = " \t\n-–—|·•:;,/\\*#_~=+<>\"'"


def clean_alt_text(text: str) -> str:
    """Removes entities, tags, addresses and file names from an alt text; may return ""."""
    for _ in range(2):  # "&amp;lt;" is common
        text = html.unescape(text)
    text = _TAG.sub(" ", text)
    for pattern in (_URL, _MAIL, _FILE, _CAMERA):
        text = pattern.sub(" ", text)
    return " ".join(text.split()).strip(_EDGES)


def open_refined(config: SourceConfig, **changes: Any) -> Source:
    """Opens the source that a configuration names, with its rules for captions and images.

    `changes`: fields that only `SourceOptions` has. Raises UserError as `open_source` does.
    """
    source = open_source(config.path, config.format, config.options(**changes))
    return refined(source, config)


def refined(source: Source, config: SourceConfig) -> Source:
    """Returns the source with the rules of `config`; the source itself if there are none."""
    exclude = HashList.read(config.exclude, config.exclude_distance) if config.exclude else None
    has_rules = (config.captions, config.filters) != (CaptionOptions(), FilterOptions())
    if exclude is None and not has_rules:
        return source
    return RefinedSource(source, config.captions, config.filters, exclude)


class RefinedSource:
    """Wrapper of `source` that cleans captions; records excluded by the filters or the hash list
    raise `DecodeError` of kind caption_filtered, image_filtered or duplicate."""

    def __init__(
        self,
        source: Source,
        captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (frozen)
        filters: FilterOptions = FilterOptions(),  # noqa: B008 (frozen)
        exclude: HashList | None = None,
    ) -> None:
        self.source = source
        self._options = captions
        self._filters = filters
        self._exclude = exclude

    @property
    def dropped(self) -> Drops:
        return self.source.dropped

    @property
    def split(self) -> str | None:
        return split_of(self.source)

    @property
    def fingerprint(self) -> str:
        listed = "" if self._exclude is None else self._exclude.fingerprint
        rules = (repr(self._options), repr(self._filters), listed)
        return fingerprint_of([(self.source.fingerprint, rules)])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        captions, weights = self._refined(record.captions, record.weights)
        self._check_image(record.key, record.image)
        return Record(record.key, record.image, captions, weights)

    def _refined(
        self, captions: tuple[str, ...], weights: tuple[float, ...] | None
    ) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        if not captions:  # the source was opened without `needs_captions`
            return (), None
        if self._options.lines:
            lines = (line for text in captions for line in text.splitlines())
            captions, weights = tuple(line for line in lines if line.strip()), None
        if self._options.clean:
            captions = tuple(clean_alt_text(text) for text in captions)
        if self._options.choice == "first":
            captions, weights = captions[:1], None
        elif self._options.choice == "concatenate":
            captions, weights = (" ".join(text for text in captions if text),), None
        filters = self._filters
        low = max(filters.min_words, 1 if self._options.clean else 0)
        high = filters.max_words or np.inf
        kept = [n for n, text in enumerate(captions) if low <= len(text.split()) <= high]
        if not kept:
            counts = ", ".join(str(len(text.split())) for text in captions)
            raise DecodeError(
                f"no caption of {low} to {high:g} words (it has {counts})", "caption_filtered"
            )
        chosen = tuple(captions[n] for n in kept)
        return chosen, None if weights is None else tuple(weights[n] for n in kept)

    def _check_image(self, key: str, image: bytes | np.ndarray) -> None:
        filters = self._filters
        if filters.min_side or filters.max_aspect is not None:
            size = open_header(image).size if isinstance(image, bytes) else image.shape[:2]
            shorter, longer = sorted(size)
            problem = ""
            if shorter < filters.min_side:
                problem = f"shorter than {filters.min_side}"
            elif filters.max_aspect is not None and longer > filters.max_aspect * shorter:
                problem = f"longer than {filters.max_aspect:g} to 1"
            if problem:
                reason = f"image of {size[0]}x{size[1]} pixels, {problem}"
                raise DecodeError(reason, "image_filtered")
        if self._exclude is not None and self._exclude.has(key, image):
            raise DecodeError("image is on the list of config.data.exclude", "duplicate")

    def captions(self, index: int) -> tuple[str, ...]:
        return self._refined(self.source.captions(index), None)[0]

    def metadata(self, index: int) -> dict[str, Any]:
        return self.source.metadata(index)

    def key(self, index: int) -> str:
        return self.source.key(index)
