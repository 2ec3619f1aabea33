"""Options of a source that all formats and stores share."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from clip_jax.arguments import Checked, Range
from clip_jax.errors import UserError
from clip_jax.files.options import RemoteOptions

LISTED_DROPS = 1000


@dataclass(frozen=True)
class CaptionOptions:
    """Options for choosing and cleaning a record's captions."""

    # "sample" draws one, by weight if columns have weights; "first" takes the first; "concatenate"
    # joins all with spaces.
    choice: Literal["sample", "first", "concatenate"] = "sample"
    lines: bool = False  # a text is several captions, one a line, as clip-benchmark writes them
    clean: bool = False  # alt texts: removes entities, tags, addresses and file names


@dataclass(frozen=True)
class AttributeWordOptions(Checked):
    """Words for an attribute of people that change at random in the captions of a training."""

    # "gender", or a file of lines of words that stand in for each other, such as man,woman. "race"
    # also changes the colours of things.
    words: str | None = None
    change: Literal["swap", "drop"] = "swap"  # for those of another group, or left out
    probability: Annotated[float, Range(0, 1)] = 0.5  # of a change to a caption


@dataclass(frozen=True)
class FilterOptions(Checked):
    """Filters on captions and images; the defaults keep every sample.

    Raises UserError if a number is out of range.
    """

    min_words: Annotated[int, Range(0)] = 0
    max_words: Annotated[int | None, Range(1)] = None
    min_side: Annotated[int, Range(0)] = 0  # pixels of the shorter side
    max_aspect: Annotated[float | None, Range(1)] = None  # longer over shorter side

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(f"max_words={self.max_words} is less than min_words={self.min_words}")


@dataclass(frozen=True)
class SourceFields(Checked):
    """User options of a source, other than its path.

    Configuration groups, command-line flags and `SourceOptions` inherit these fields, so that each
    is defined once. Fields that do not apply to a format are ignored, except `image_column`.

    Raises UserError if the caption weights are invalid or not one per caption column.
    """

    image_column: str | None = None  # None: the first column with a usual name
    caption_column: str | None = None  # one or several, comma-separated; None: likewise
    caption_weights: tuple[float, ...] = ()  # one per caption column; (): all equal
    caption_template: str = "a photo of a {}."  # for class-named folders
    # None means "train" if the dataset has it; an evaluation prefers "test", then "validation".
    split: str | None = None
    remote: RemoteOptions = field(default_factory=RemoteOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """Names of the caption columns; () for the usual ones."""
        names = (self.caption_column or "").split(",")
        return tuple(name.strip() for name in names if name.strip())

    def chosen(
        self, texts: Sequence[Sequence[str]]
    ) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        """Returns (captions, weights) of a record, from the usable texts of each caption column.

        The texts of a column share its weight; columns of weight 0 are left out.
        """
        if not self.caption_weights:
            return tuple(text for found in texts for text in found), None
        pairs = [
            (text, weight / len(found))
            for weight, found in zip(self.caption_weights, texts, strict=True)
            for text in found
            if weight > 0
        ]
        return tuple(text for text, _ in pairs), tuple(weight for _, weight in pairs)


@dataclass(frozen=True)
class SourceOptions(SourceFields):
    """Options of a format's reader: the user's fields above, and what the program needs."""

    # If the user names no split, the first of these that the data has is read.
    preferred_splits: tuple[str, ...] = ("train",)
    # False keeps records without a usable caption, and reads data without a caption column: for
    # callers that want only images and labels.
    needs_captions: bool = True
    # The label field is in `metadata` even if it is also a caption or a key.
    label_column: str | None = None
    # These are searched if none of a table's first images exists relative to it.
    image_folders: tuple[str, ...] = ()
    # Only this many dropped samples are listed by name; all are counted.
    listed_drops: int = LISTED_DROPS
    # True, for inspecting data: unreadable local files are skipped and counted instead of being an
    # error, and a source may be left with no sample.
    skip_unreadable: bool = False


@dataclass(frozen=True)
class SourceConfig(SourceFields):
    """One source in a configuration: its path, format and options, and the rules for its captions
    and images."""

    path: str = ""  # folder, table or shards, local or remote; for "glyphs" a split; see README
    format: str = "auto"  # or a name that `clip_jax.data.sources.formats` has
    captions: CaptionOptions = field(default_factory=CaptionOptions)
    filters: FilterOptions = field(default_factory=FilterOptions)
    exclude: str = ""  # file of perceptual hashes (16 hex digits a line) of images to drop
    exclude_distance: int = 0  # bits by which a match may differ

    def options(self, **changes: Any) -> SourceOptions:
        """Returns the options of the reader; `changes`: fields that only `SourceOptions` has."""
        fields = (each.name for each in dataclasses.fields(SourceFields))
        return SourceOptions(**{name: getattr(self, name) for name in fields}, **changes)
