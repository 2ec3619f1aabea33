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
from clip_jax.adaptation.context import Context, MetaNet, init_context, init_meta_net
from clip_jax.adaptation.derived import Coupling, Singular, init_coupling, init_singular
from clip_jax.adaptation.low_rank import LowRank, init_low_rank
from clip_jax.adaptation.pull import NO_PULL, Pull
from clip_jax.adaptation.tree import Adapter
from clip_jax.models.config import ClipConfig

Part = LowRank | Selected | Bottleneck | Prompts | Prefix | Context | MetaNet | Coupling | Singular


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a method learns from K classes with a few images each."""

    optimizer: Literal["adamw", "sgd"] = "adamw"  # SGD has momentum 0.9
    learning_rate: float = 2e-4
    weight_decay: float = 1e-2  # decoupled, of all that is trained
    steps_a_shot: int = 500  # optimizer steps for each image a class, then a cosine to 0 at the end
    batch_size: int = 32
    warmup_steps: int = 0  # at 1e-5, as CoOp's first epoch
    # In place of `steps_a_shot`: passes over the images, of which the first is at 1e-5.
    epochs: int | None = None
    # The result is a mean over all steps with Gaussian weights: its centre and standard deviation
    # in shares of the run. None: the result is the last step's.
    averaged: tuple[float, float] | None = None
    layer_decay: float = 1.0  # factor of the rate a block, from the last to the first

    def steps(self, shots: int, classes: int) -> int:
        """Returns the number of steps for so many images a class."""
        if self.epochs is None:
            return self.steps_a_shot * shots
        return self.epochs * max(shots * classes // self.batch_size, 1)

    def warmup(self, steps: int) -> int:
        """Returns how many of the steps warm up: of `warmup_steps`, a tenth of all at most."""
        return min(self.warmup_steps, steps // 10) if self.epochs is None else steps // self.epochs


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: where it comes from, what it trains, and how."""

    paper: str
    parts: tuple[Part, ...]
    recipe: Recipe = Recipe()
    pull: Pull = NO_PULL

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
                case MetaNet():
                    adapter |= init_meta_net(config, params, part, part_key)
                case Coupling():
                    adapter |= init_coupling(config, params, part, part_key)
                case Singular():
                    adapter |= init_singular(params, part)
        return adapter


# Prompts learn for about as many updates as the epochs of their papers have at this batch size.
_PROMPTS = Recipe("sgd", 2e-3, 5e-4, 100, warmup_steps=10)
_DEEP = Prompts(4, depth=9, towers=("vision", "text"))
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
    "full_layer_decay": Method(
        "The same with smaller rates of lower blocks, Bao et al. 2021, BEiT",
        (Selected(),),
        Recipe(learning_rate=1e-4, weight_decay=0.1, steps_a_shot=100, layer_decay=0.75),
    ),
    "coop": Method("CoOp, Zhou et al. 2022", (Context(16),), _PROMPTS),
    "coop_4": Method("CoOp from “a photo of a”, Zhou et al. 2022", (Context(4),), _PROMPTS),
    # Rates, epochs and batches of these are those of the authors' configurations.
    "cocoop": Method(
        "CoCoOp, Zhou et al. 2022b",
        (Context(4), MetaNet()),
        Recipe("sgd", 2e-3, 5e-4, batch_size=1, epochs=10),
    ),
    "kgcoop": Method(
        "KgCoOp, Yao et al. 2023",
        (Context(4),),
        Recipe("sgd", 2e-3, 5e-4, batch_size=128, epochs=100),
        Pull(texts_squared=8.0),
    ),
    "maple": Method(
        "MaPLe, Khattak et al. 2023",
        (Context(2), Prompts(2, depth=9, towers=("text",)), Coupling()),
        Recipe("sgd", 3.5e-3, 5e-4, batch_size=4, epochs=5),
    ),
    "promptsrc": Method(
        "PromptSRC, Khattak et al. 2023b, as for base to new classes",
        (Context(4), _DEEP),
        Recipe("sgd", 2.5e-3, 5e-4, batch_size=4, epochs=20, averaged=(0.75, 0.05)),
        Pull(texts=25.0, images=10.0, logits=1.0),
    ),
    "vpt": Method("VPT-shallow, Jia et al. 2022", (Prompts(4),), _PROMPTS),
    "vpt_deep": Method("VPT-deep, Jia et al. 2022", (Prompts(4, depth=9),), _PROMPTS),
    "ivlp": Method(
        "Independent prompts of both towers, the baseline of MaPLe, Khattak et al. 2023",
        (Context(4), _DEEP),
        dataclasses.replace(_PROMPTS, learning_rate=2.5e-3),
    ),
    "prefix": Method(
        "Li and Liang 2021", (Prefix(),), Recipe(learning_rate=1e-3, steps_a_shot=100)
    ),
    # Their rate differs by data set; this one is ours.
    "clip_svd": Method(
        "CLIP-SVD, Koleilat et al. 2025",
        (Singular(),),
        Recipe(learning_rate=1e-3, weight_decay=0.0, steps_a_shot=100),
    ),
}
