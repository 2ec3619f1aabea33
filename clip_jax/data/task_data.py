"""Which data an evaluation reads, and how it finds the class of an image."""

from dataclasses import dataclass
from typing import Literal

from clip_jax.data.options import SourceConfig


@dataclass(frozen=True)
class TaskData(SourceConfig):
    """A source, and what zero-shot classification makes of it."""

    label_key: str = "class"  # metadata field that holds the class: its name or number
    # How labels are read: as class names, as numbers of classes (0 is the first line of
    # `classnames`), or as what fits; docs/data.md has the table.
    labels: Literal["auto", "names", "numbers"] = "auto"
    classnames: str | None = None  # file, a name a line; None: the names found in the data
    templates: str = "openai"  # prompt templates by name, or a file
    batch_size: int = 256  # images
