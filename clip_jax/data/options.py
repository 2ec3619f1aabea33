"""How a source is read: what all formats and all stores have in common."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from clip_jax.errors import UserError
from clip_jax.files.options import RemoteOptions

Format = Literal[
    "auto",
    "folder",
    "csv",
    "jsonl",
    "parquet",
    "webdataset",
    "array_record",
    "tfds",
    "huggingface",
    "synthetic",
    "glyphs",
]


LISTED_DROPS = 1000


@dataclass(frozen=True)
class CaptionOptions:
    """What becomes of the captions of a record."""

    # sample: one of them, by weight where columns have weights; first; concatenate: all, with a
    # space between.
    choice: Literal["sample", "first", "concatenate"] = "sample"
    clean: bool = False  # alt texts: entities, tags, addresses and file names go


@dataclass(frozen=True)
class FilterOptions:
    """Which samples are left out, by caption and by image; the defaults leave none out.

    Raises UserError where a number is out of its range.
    """

    min_words: int = 0
    max_words: int | None = None
    min_side: int = 0  # pixels of the shorter side
    max_aspect: float | None = None  # longer over shorter side

    def __post_init__(self) -> None:
        ranges = {"min_words": 0, "max_words": 1, "min_side": 0, "max_aspect": 1}
        for name, low in ranges.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise UserError(f"filters.{name}={value}; accepted is a number of at least {low}")
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(
                f"filters.max_words={self.max_words} is less than min_words={self.min_words}"
            )


@dataclass(frozen=True)
class SourceFields:
    """What a person can say about a source, besides where it is.

    The groups of a configuration, the flags of programs and `SourceOptions` inherit these fields,
    so that each is written once. What does not concern a format is ignored, but for `image_column`.

    Raises UserError where names and weights of captions do not fit.
    """

    image_column: str | None = None  # None: the first with a usual name
    caption_column: str | None = None  # one, or several with commas between; None: likewise
    caption_weights: tuple[float, ...] = ()  # for each caption column; (): all alike
    caption_template: str = "a photo of a {}."  # for class-named folders
    # Of a dataset that has several. None: "train" where there is one; an evaluation prefers "test",
    # then "validation".
    split: str | None = None
    remote: RemoteOptions = field(default_factory=RemoteOptions)

    def __post_init__(self) -> None:
        weights, columns = self.caption_weights, self.caption_columns
        if not weights:
            return
        if len(weights) != len(columns):
            raise UserError(
                f"caption_weights={weights} are {len(weights)} for {len(columns)} caption columns"
                f" ({self.caption_column}); give one for each"
            )
        if min(weights) < 0 or not sum(weights) > 0:
            raise UserError(
                f"caption_weights={weights}; accepted are numbers of at least 0, not all 0"
            )

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold captions; () for the usual ones."""
        names = (self.caption_column or "").split(",")
        return tuple(name.strip() for name in names if name.strip())

    def chosen(self, captions: dict[str, str]) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        """(captions, weights) of a record from its captions by column; blank ones and those of
        weight 0 are left out."""
        found = [name for name in captions if captions[name].strip()]
        if not self.caption_weights:
            return tuple(captions[name] for name in found), None
        weights = dict(zip(self.caption_columns, self.caption_weights, strict=True))
        found = [name for name in found if weights[name]]
        return tuple(captions[name] for name in found), tuple(weights[name] for name in found)


@dataclass(frozen=True)
class SourceOptions(SourceFields):
    """How a format's reader reads one source: the fields above, and what the program needs."""

    # Without a split of this list, the first of its names that the data has is read.
    preferred_splits: tuple[str, ...] = ("train",)
    # False: a record without a usable caption is kept, with none, and data without a column of
    # captions are read; for those who want images and labels.
    needs_captions: bool = True
    # The field that holds labels: in `metadata` even where it is a caption or a key, too.
    label_column: str | None = None
    # Of what is left out when the source is opened, so many by name; all are counted.
    listed_drops: int = LISTED_DROPS
    # For those who look at data: archives here that cannot be read are left out and counted, where
    # otherwise the first of them is an error, and it is no error if no sample remains.
    skip_unreadable: bool = False


@dataclass(frozen=True)
class SourceConfig(SourceFields):
    """One source as a configuration names it: its place, its format, how it is read, and the rules
    for its captions and images."""

    path: str = ""  # folder, table or shards, here or in a store; for "glyphs" a split; see README
    format: Format = "auto"
    captions: CaptionOptions = field(default_factory=CaptionOptions)
    filters: FilterOptions = field(default_factory=FilterOptions)
    exclude: str = ""  # file of perceptual hashes (16 hexadecimal digits a line) to leave out
    exclude_distance: int = 0  # bits that may differ from one on the list

    def options(self, **changes: Any) -> SourceOptions:
        """The options of its reader; `changes`: fields that only `SourceOptions` has."""
        fields = (each.name for each in dataclasses.fields(SourceFields))
        return SourceOptions(**{name: getattr(self, name) for name in fields}, **changes)
