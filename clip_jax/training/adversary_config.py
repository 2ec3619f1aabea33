"""`config.adversary`: groups of people that the image embeddings should not tell apart."""

import dataclasses
from typing import Annotated

from clip_jax.arguments import POSITIVE, Checked
from clip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class AdversaryConfig(Checked):
    """A classifier of a group behind a reversed gradient (training/step/adversary.py)."""

    field: str | None = None  # metadata field with the group, such as "gender"; None: no adversary
    groups: tuple[str, ...] = ()  # all values of the field
    weight: Annotated[float, POSITIVE] = 0.1  # factor of its gradient in the image tower


def check_adversary(adversary: AdversaryConfig) -> None:
    """Raises `UserError` for a field without two groups, or groups without a field."""
    where = f"config.adversary.groups={adversary.groups}"
    if adversary.field is None:
        if adversary.groups:
            raise UserError(f"{where}: give config.adversary.field, the metadata field with them")
    elif len(set(adversary.groups)) < max(2, len(adversary.groups)):
        raise UserError(
            f"{where}: give at least two values of the field {adversary.field!r}, each once"
        )
