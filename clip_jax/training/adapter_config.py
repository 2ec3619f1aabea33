"""`config.adapter`: what a run trains in place of the parameters of its initial model."""

import dataclasses
from typing import Annotated, Any, Literal

from clip_jax.arguments import POSITIVE, Checked, Range


@dataclasses.dataclass(frozen=True)
class AdapterConfig(Checked):
    """An adapter of `config.init.source`; None leaves an option to the method (docs/adapt.md)."""

    # None trains the parameters themselves. A method that needs classes is for clip_jax.adapt.
    method: Literal["lora", "dora", "bottleneck", "bitfit", "layer_norm", "prefix"] | None = None
    rank: Annotated[int | None, Range(1)] = None
    alpha: Annotated[float | None, POSITIVE] = None  # updates have the factor alpha / √rank
    targets: tuple[str, ...] | None = None  # of query, key, value, out, mlp, projection, …
    towers: tuple[str, ...] | None = None  # of vision, text
    dropout: Annotated[float | None, Range(0, 0.99)] = None  # of the inputs of low-rank updates

    @property
    def options(self) -> dict[str, Any]:
        """The options that are given."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: value for name, value in values.items() if name != "method" and value is not None
        }
