"""The flags by which every command is told what data to read."""

from __future__ import annotations

import os
from dataclasses import dataclass

from absl import flags

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Source
from clip_jax.errors import UserError


@dataclass(frozen=True)
class SourceFlags:
    """The flags of one command, defined by `define_source_flags`."""

    data: flags.FlagHolder[str | None]
    format: flags.FlagHolder[str]
    image_column: flags.FlagHolder[str | None]
    caption_column: flags.FlagHolder[str | None]
    caption_template: flags.FlagHolder[str]
    split: flags.FlagHolder[str | None]

    @property
    def path(self) -> str:
        """Raises UserError where none is given."""
        if not self.data.value:
            raise UserError("--data: is missing; give a folder, a .csv file or .tar files")
        return self.data.value

    def options(self) -> SourceOptions:
        return SourceOptions(
            image_column=self.image_column.value,
            caption_column=self.caption_column.value,
            caption_template=self.caption_template.value,
            split=self.split.value,
        )

    def open(self) -> Source:
        """Raises UserError where nothing usable is there."""
        from clip_jax.data.sources import open_source

        return open_source(self.path, self.format.value, self.options())

    def as_dict(self) -> dict[str, str | None]:
        """Flag -> value: what decides which records there are."""
        return {
            "data": self.path,
            "format": self.format.value,
            "image_column": self.image_column.value,
            "caption_column": self.caption_column.value,
            "caption_template": self.caption_template.value,
            "split": self.split.value,
        }


def define_source_flags(values: flags.FlagValues) -> SourceFlags:
    """Adds --data and its companions to the flags of a command."""
    from clip_jax.data.sources import FORMATS

    return SourceFlags(
        data=flags.DEFINE_string(
            "data",
            None,
            "Folder, .csv, .jsonl, .parquet, .array_record or .tar files: one, a folder of them, a"
            " glob, {00000..00006}.tar, a comma list; here or at a URL.",
            flag_values=values,
        ),
        format=flags.DEFINE_enum(
            "format", "auto", FORMATS, "auto looks at what is there.", flag_values=values
        ),
        image_column=flags.DEFINE_string(
            "image_column",
            None,
            "Column or field of images, or of their paths.",
            flag_values=values,
        ),
        caption_column=flags.DEFINE_string(
            "caption_column",
            None,
            "Column or field of captions; several with commas between.",
            flag_values=values,
        ),
        caption_template=flags.DEFINE_string(
            "caption_template",
            SourceOptions().caption_template,
            "Caption of an image in a class-named folder.",
            flag_values=values,
        ),
        split=flags.DEFINE_string(
            "split", None, "Split of a Hugging Face or TFDS dataset.", flag_values=values
        ),
    )


def define_workers(values: flags.FlagValues) -> flags.FlagHolder[int]:
    """Adds --workers."""
    return flags.DEFINE_integer(
        "workers",
        os.cpu_count() or 1,
        "Processes; 0 does the work in this one.",
        lower_bound=0,
        flag_values=values,
    )
