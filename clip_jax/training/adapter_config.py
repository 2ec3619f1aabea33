"""`config.adapter`: what a run trains in place of the parameters of its initial model."""

import dataclasses
from typing import Annotated, Any, Literal

from clip_jax.arguments import POSITIVE, Checked, Range
from clip_jax.errors import UserError


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


def check_adapter(adapter: AdapterConfig, source: str, fixed: dict[str, Any]) -> None:
    """Raises `UserError` for an adapter without a `source`, or with settings of `fixed` set.

    `fixed` are those that choose among parameters, by key.
    """
    if adapter.method is None:
        if adapter.options:
            raise UserError(f"config.adapter={adapter.options}: give config.adapter.method too")
        return
    where = f"config.adapter.method={adapter.method!r}"
    if not source:
        raise UserError(f"{where}: give the model that it is for by config.init.source")
    for key, value in fixed.items():
        if value:
            raise UserError(f"config.{key}={value}: leave it out; {where} trains no parameters")
