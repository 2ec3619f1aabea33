"""`AdaptedClip`: a model with an adapter; and where adapters are found."""

import os
from pathlib import Path
from typing import Any

from clip_jax.adaptation.folder import (
    Adaptation,
    check_mergeable,
    hash_of_base,
    is_adapter,
    read_adaptation,
    read_facts,
    write_adaptation,
)
from clip_jax.adaptation.hooks import ADAPTER
from clip_jax.adaptation.low_rank import merged
from clip_jax.adaptation.peft import write_peft
from clip_jax.adaptation.towers import entered
from clip_jax.adaptation.tree import with_separate_blocks, with_stacked_blocks
from clip_jax.arguments import local_path
from clip_jax.clip import Clip
from clip_jax.errors import UserError

OF_RUN = "adapter"  # the folder of a run of clip_jax.adapt


class AdaptedClip(Clip):
    """A model whose parameters an adapter changes, or to which it adds.

    Other values of the parameters, LoRA's among them, are merged: the model is as fast as its base.
    Prompts, prefixes and bottlenecks stay beside the parameters. `base` is not changed, so that
    several adapters take turns on one: `AdaptedClip(clip.base, other)`.
    """

    def __init__(self, base: Clip, adaptation: Adaptation) -> None:
        """Combines a model with an adapter. Raises `UserError` if the adapter is of another."""
        config, params = with_separate_blocks(base.config, base.params)
        try:
            check_mergeable(adaptation, params)
        except UserError:
            variables = entered(params, adaptation.towers, adaptation.scale)
            params = variables["params"] | {ADAPTER: variables[ADAPTER]}
            self._is_merged = False
        else:
            params = merged(params, adaptation.towers, adaptation.scale)
            if config != base.config:
                config, params = base.config, with_stacked_blocks(params, base.params)
            self._is_merged = True
        super().__init__(config, params, find_tokenizer=base._own_tokenizer)
        self.base = base
        self.adaptation = adaptation

    def save(self, directory: str | os.PathLike[str], format: str = "clip_jax") -> None:
        """Writes the model with its adapter merged, as `Clip.save`.

        Raises `UserError` as that does, and for an adapter that cannot be merged.
        """
        self._check_merged("save")
        super().save(directory, format)

    def save_adapter(self, directory: str | os.PathLike[str], format: str = "clip_jax") -> None:
        """Writes the adapter alone, in our layout, or PEFT's for `PeftModel.from_pretrained`.

        Raises `UserError` for an unknown format, or an adapter that the format cannot express.
        """
        folder = local_path(directory, "directory")
        if format == "clip_jax":
            write_adaptation(folder, self.adaptation)
        elif format == "peft":
            config, params = with_separate_blocks(self.base.config, self.base.params)
            a = self.adaptation
            write_peft(folder, config, params, a.adapter, a.scale, a.base)
        else:
            raise UserError(f"format={format!r}: choose clip_jax or peft")

    def image_features(self, images: Any) -> Any:
        """Returns `Clip.image_features`. Raises `UserError` for an adapter that is not merged."""
        self._check_merged("image_features")
        return super().image_features(images)

    def text_features(self, texts: Any) -> Any:
        """Returns `Clip.text_features`. Raises `UserError` for an adapter that is not merged."""
        self._check_merged("text_features")
        return super().text_features(texts)

    def generate(self, *arguments: Any, **options: Any) -> list[str]:
        """Returns `Clip.generate`. Raises `UserError` for an adapter that is not merged."""
        self._check_merged("generate")
        return super().generate(*arguments, **options)

    def _check_merged(self, what: str) -> None:
        if not self._is_merged:
            try:
                check_mergeable(self.adaptation, self.base.params)
            except UserError as error:
                raise UserError(f"{what}: {error}") from None


def read_adapted(clip: Clip, folder: str | os.PathLike[str], source: str) -> AdaptedClip:
    """Reads an adapter from a folder, and adds it to its model, which came from `source`.

    Raises UserError: there is none, or it is of another model.
    """
    config, params = with_separate_blocks(clip.config, clip.params)
    found = read_adaptation(local_path(folder, "adapter"), config, params)
    if not found.base:
        values = (found.adapter, found.scale, found.method)
        found = Adaptation(*values, base=source, base_hash=hash_of_base(params))
    return AdaptedClip(clip, found)


def adapter_of_run(source: Any) -> tuple[str, Path] | None:
    """Returns the base model and the adapter of a run of `clip_jax.adapt`; None for anything else.

    Raises UserError: an adapter by itself, which is no model.
    """
    folder = Path(os.path.expanduser(os.fspath(source)))
    if (folder / OF_RUN).is_dir() and is_adapter(folder / OF_RUN):
        return str(read_facts(folder / OF_RUN)["base"]), folder / OF_RUN
    return None
