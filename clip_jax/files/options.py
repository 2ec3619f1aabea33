"""How files in stores are read."""

from dataclasses import dataclass
from typing import Literal

from clip_jax.errors import UserError


@dataclass(frozen=True)
class RemoteOptions:
    """How files elsewhere (gs://, s3://, hf://, https://, …) are read.

    Raises UserError where a number is out of its range.
    """

    cache_gib: float = 32.0  # of local disk for copies of remote shards; the least recent go first
    attempts: int = 5  # before a file counts as failed; the pause doubles after each
    backoff_seconds: float = 1.0  # the first pause
    timeout_seconds: float = 60.0  # without a byte
    # A shard that fails in spite of that, here or elsewhere, or is no tar: left out and counted, or
    # the run stops.
    on_failure: Literal["skip", "stop"] = "skip"

    def __post_init__(self) -> None:
        least = {"cache_gib": 0, "attempts": 1, "backoff_seconds": 0, "timeout_seconds": 0.01}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise UserError(
                    f"remote.{name}={getattr(self, name)}; accepted is a number of at least {low}"
                )
