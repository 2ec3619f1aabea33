"""Methods that change the towers: what each adds or trains, and its one recipe."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax

from clip_jax.adaptation.additions import (
    Bottleneck,
    Prefix,
    Prompts,
    Selected,
    init_bottleneck,
    init_prefix,
    init_prompts,
    init_selected,
)
from clip_jax.adaptation.context import Context, init_context
from clip_jax.adaptation.low_rank import LowRank, init_low_rank
from clip_jax.adaptation.tree import Adapter
from clip_jax.models.config import ClipConfig

Part = LowRank | Selected | Bottleneck | Prompts | Prefix | Context


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a method learns from K classes with a few images each."""

    optimizer: Literal["adamw", "sgd"] = "adamw"  # SGD has momentum 0.9
    learning_rate: float = 2e-4
    weight_decay: float = 1e-2  # decoupled, of all that is trained
    steps_a_shot: int = 500  # optimizer steps for each image a class, then a cosine to 0 at the end
    batch_size: int = 32
    warmup_steps: int = 0  # at 1e-5, as CoOp's first epoch


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: where it comes from, what it trains, and how."""

    paper: str
    parts: tuple[Part, ...]
    recipe: Recipe = Recipe()

    @property
    def scale(self) -> float:
        """The factor of low-rank updates."""
        return next((part.scale for part in self.parts if isinstance(part, LowRank)), 1.0)

    @property
    def dropout(self) -> float:
        """The rate before low-rank updates, in training."""
        return next((part.dropout for part in self.parts if isinstance(part, LowRank)), 0.0)

    @property
    def context(self) -> Context | None:
        """The learned words of class prompts, if there are some."""
        return next((part for part in self.parts if isinstance(part, Context)), None)

    def init(
        self, config: ClipConfig, params: Any, key: jax.Array, words: Sequence[int] = ()
    ) -> Adapter:
        """Makes the adapter for a model whose blocks are separate.

        `words` are the tokens that a context starts from. Raises UserError: the model cannot have
        one of the parts.
        """
        adapter: Adapter = {}
        for number, part in enumerate(self.parts):
            part_key = jax.random.fold_in(key, number)
            match part:
                case LowRank():
                    adapter |= init_low_rank(params, part, part_key)
                case Selected():
                    adapter |= init_selected(params, part)
                case Bottleneck():
                    adapter |= init_bottleneck(params, part, part_key)
                case Prompts():
                    adapter |= init_prompts(config, params, part, part_key)
                case Prefix():
                    adapter |= init_prefix(config, params, part, part_key)
                case Context():
                    adapter |= init_context(params, part, part_key, words)
        return adapter


# Prompts learn for about as many updates as the epochs of their papers have at this batch size.
_PROMPTS = Recipe("sgd", 2e-3, 5e-4, 100, warmup_steps=10)
METHODS: dict[str, Method] = {
    "lora": Method("CLIP-LoRA, Zanella and Ben Ayed 2024", (LowRank(),)),
    "dora": Method("DoRA, Liu et al. 2024", (LowRank(magnitude=True, dropout=0.0),)),
    "bottleneck": Method(
        "Houlsby et al. 2019", (Bottleneck(),), Recipe(learning_rate=1e-3, steps_a_shot=100)
    ),
    "bitfit": Method(
        "BitFit, Ben Zaken et al. 2022",
        (Selected((r"(vision|text)/.*bias",)),),
        Recipe(learning_rate=1e-3, weight_decay=0.0, steps_a_shot=100),
    ),
    "layer_norm": Method(
        "LayerNorm tuning, Kim et al. 2021",
        (Selected((r"(vision|text)/.*norm/(scale|bias)",)),),
        Recipe(learning_rate=1e-3, weight_decay=0.0, steps_a_shot=100),
    ),
    "full": Method(
        "Full fine-tuning with the recipe of WiSE-FT, Wortsman et al. 2022",
        (Selected(),),
        Recipe(learning_rate=3e-5, weight_decay=0.1, steps_a_shot=100),
    ),
    "coop": Method("CoOp, Zhou et al. 2022", (Context(16),), _PROMPTS),
    "coop_4": Method("CoOp from “a photo of a”, Zhou et al. 2022", (Context(4),), _PROMPTS),
    "vpt": Method("VPT-shallow, Jia et al. 2022", (Prompts(4),), _PROMPTS),
    "vpt_deep": Method("VPT-deep, Jia et al. 2022", (Prompts(4, depth=9),), _PROMPTS),
    "ivlp": Method(
        "Independent prompts of both towers, the baseline of MaPLe, Khattak et al. 2023",
        (Context(4), Prompts(4, depth=9, towers=("vision", "text"))),
        dataclasses.replace(_PROMPTS, learning_rate=2.5e-3),
    ),
    "prefix": Method(
        "Li and Liang 2021", (Prefix(),), Recipe(learning_rate=1e-3, steps_a_shot=100)
    ),
}
