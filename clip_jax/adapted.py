"""`AdaptedClip`: a model with an adapter; and where adapters are found."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.adaptation.context import (
    WORDS,
    class_prompts,
    cosines_of_each,
    has_meta_net,
    text_classifier,
    without_words,
)
from clip_jax.adaptation.derived import bases, derived
from clip_jax.adaptation.folder import (
    FACTS,
    Adaptation,
    check_base,
    hash_of_base,
    is_adapter,
    read_adaptation,
    read_facts,
    unmerged,
    write_adaptation,
)
from clip_jax.adaptation.heads import has_head, head_logits
from clip_jax.adaptation.hooks import ADAPTER
from clip_jax.adaptation.low_rank import merged
from clip_jax.adaptation.peft import write_peft
from clip_jax.adaptation.towers import entered
from clip_jax.adaptation.tree import Adapter, with_separate_blocks, with_stacked_blocks
from clip_jax.arguments import local_path
from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.evaluation.zero_shot import check_classnames
from clip_jax.weights.files.names import adapter as adapter_error
from clip_jax.weights.files.names import listed
from clip_jax.weights.layouts.bundle import is_bundle

OF_RUN = "adapter"  # the folder of a run


class AdaptedClip(Clip):
    """A model whose parameters an adapter changes, or to which it adds.

    Other values of the parameters, LoRA's among them, are merged: the model is as fast as its base.
    Prompts, prefixes and bottlenecks stay beside the parameters. `base` is not changed, so that
    several adapters take turns on one: `AdaptedClip(clip.base, other)`.
    """

    def __init__(self, base: Clip, adaptation: Adaptation, base_hash: str = "") -> None:
        """Combines a model with an adapter. Raises `UserError` if the adapter is of another.

        `base_hash` is that of the model, where it is known.
        """
        config, params = with_separate_blocks(base.config, base.params)
        check_base(adaptation, config.name, base_hash or hash_of_base(params))
        towers = derived(adaptation.towers, bases(params, adaptation.towers))
        self._with_words = towers if WORDS in towers else {}
        towers = without_words(towers)
        self._beside = unmerged(towers, params)
        if self._beside:
            variables = entered(params, towers, adaptation.scale)
            params = variables["params"] | {ADAPTER: variables[ADAPTER]}
        elif towers:
            params = merged(params, towers, adaptation.scale)
            if config != base.config:
                config, params = base.config, with_stacked_blocks(params, base.params)
        else:
            config, params = base.config, base.params
        super().__init__(config, params, mesh=base._mesh, find_tokenizer=base._own_tokenizer)
        self.base = base
        self.adaptation = adaptation

    @property
    def knows_only_classes(self) -> bool:
        """Whether the adapter makes logits of classes, and texts say nothing of what it learned."""
        return has_head(self.adaptation.adapter) or WORDS in self.adaptation.adapter

    def encode_text(self, *arguments: Any, **options: Any) -> np.ndarray:
        """Returns `Clip.encode_text`. Raises `UserError` if tokens were learned for class prompts.

        Deep prompts take the places of a text's first words.
        """
        deep = [path for path in self._beside if re.fullmatch(r"text/.*/prompts", path)]
        self._refuse("encode_text", deep)
        return super().encode_text(*arguments, **options)

    def zero_shot_classifier(
        self, classnames: Any, templates: Any = "openai", truncate: bool | None = None
    ) -> np.ndarray:
        """Builds `Clip.zero_shot_classifier`; with the learned words of CoOp in place of templates.

        Raises `UserError` as that does, and if each image has a classifier of its own (CoCoOp).
        """
        if WORDS not in self._with_words:
            return super().zero_shot_classifier(classnames, templates, truncate)
        if has_meta_net(self._with_words):
            raise UserError(
                f"zero_shot_classifier: method {self.adaptation.method!r} makes a classifier for"
                " each image; classify uses them"
            )
        return np.asarray(self._words_classifier(classnames)(self._with_words))

    def _words_classifier(self, classnames: Any) -> Callable[[Adapter], jax.Array]:
        """Returns a function of an adapter with learned words: the classifier (D, K)."""
        names = [of_class[0] for of_class in check_classnames(classnames)]
        config, params = with_separate_blocks(*self._of_base)
        prompts = class_prompts(config, self.tokenizer, names, len(self._with_words[WORDS]))
        return lambda adapter: text_classifier(prompts, params, adapter, self.adaptation.scale)

    def classify(
        self,
        images: Any,
        classnames: Any,
        templates: Any = "openai",
        truncate: bool | None = None,
    ) -> np.ndarray:
        """Computes `Clip.classify`; a method with a head knows the classes that it learned.

        Raises `UserError` as that does, and for another class than these.
        """
        adapter = self.adaptation.adapter
        if has_meta_net(adapter):
            function, embeds = self._words_classifier(classnames), self.encode_image(images)
            cosines = cosines_of_each(function, self._with_words, jnp.asarray(embeds))
            return np.asarray(jax.nn.softmax(self.logit_scale * cosines, axis=-1))
        if not has_head(adapter):
            return super().classify(images, classnames, templates, truncate)
        known = {name: number for number, name in enumerate(self.adaptation.classes)}
        names = [of_class[0] for of_class in check_classnames(classnames)]
        for name in names:
            if name not in known:
                raise UserError(
                    f"class {name!r}: is none of the {len(known)} that {self.adaptation.method}"
                    f" learned, such as {next(iter(known))!r}"
                )
        logits = head_logits(self.adaptation.method, adapter, self.encode_image(images))
        chosen = logits[:, [known[name] for name in names]]
        return np.asarray(jax.nn.softmax(jnp.asarray(chosen), axis=-1))

    def save(self, directory: str | os.PathLike[str], format: str = "clip_jax") -> None:
        """Writes the model with its adapter merged, as `Clip.save`.

        Raises `UserError` as that does, and for an adapter that cannot be merged.
        """
        left = unmerged(self.adaptation.adapter, with_separate_blocks(*self._of_base)[1])
        self._refuse("save", left)
        super().save(directory, format)

    def save_adapter(self, directory: str | os.PathLike[str], format: str = "clip_jax") -> None:
        """Writes the adapter alone, in our layout, or PEFT's for `PeftModel.from_pretrained`.

        Raises `UserError` for an unknown format, or an adapter that the format cannot express.
        """
        folder = local_path(directory, "directory")
        if format == "clip_jax":
            write_adaptation(folder, self.adaptation)
        elif format == "peft":
            config, params = with_separate_blocks(*self._of_base)
            a = self.adaptation
            write_peft(folder, config, params, a.adapter, a.scale, a.base)
        else:
            raise UserError(f"format={format!r}: choose clip_jax or peft")

    def image_features(self, images: Any) -> Any:
        """Returns `Clip.image_features`. Raises `UserError` for an adapter that is not merged."""
        self._refuse("image_features", self._beside)
        return super().image_features(images)

    def text_features(self, texts: Any) -> Any:
        """Returns `Clip.text_features`. Raises `UserError` for an adapter that is not merged."""
        self._refuse("text_features", self._beside)
        return super().text_features(texts)

    def generate(self, *arguments: Any, **options: Any) -> list[str]:
        """Returns `Clip.generate`. Raises `UserError` for an adapter that is not merged."""
        self._refuse("generate", self._beside)
        return super().generate(*arguments, **options)

    @property
    def _of_base(self) -> tuple[Any, Any]:
        return self.base.config, self.base.params

    def _refuse(self, what: str, left: list[str]) -> None:
        if left:
            raise UserError(
                f"{what}: method {self.adaptation.method!r} is not merged into the parameters"
                f" ({listed(left)}); save_adapter keeps it beside them"
            )


def read_adapted(clip: Clip, folder: str | os.PathLike[str], source: str) -> AdaptedClip:
    """Reads an adapter from a folder, and adds it to its model, which came from `source`.

    Raises UserError: there is none, or it is of another model.
    """
    config, params = with_separate_blocks(clip.config, clip.params)
    path = local_path(folder, "adapter")
    if is_adapter(path / OF_RUN):
        path /= OF_RUN
    found = read_adaptation(path, config, params)
    if not found.base:
        values = (found.adapter, found.scale, found.method)
        found = Adaptation(*values, base=source, base_hash=hash_of_base(params))
    return AdaptedClip(clip, found)


def named_base(source: str) -> str:
    """Returns the name of a model by which an adapter can load it from any folder."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def adapter_of_run(source: Any) -> tuple[str, Path] | None:
    """Returns the base model and the adapter of a run that has no merged model; else None.

    Raises UserError: an adapter by itself, which is no model.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    folder = Path(os.path.expanduser(os.fspath(source)))
    if (folder / FACTS).is_file():
        raise adapter_error(folder)
    if (folder / OF_RUN / FACTS).is_file() and not is_bundle(folder / "model"):
        return str(read_facts(folder / OF_RUN)["base"]), folder / OF_RUN
    return None
