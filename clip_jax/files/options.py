"""Options for reading remote files."""

from dataclasses import dataclass
from typing import Literal

from clip_jax.errors import UserError


@dataclass(frozen=True)
class RemoteOptions:
    """Options for reading remote files (gs://, s3://, hf://, https://, …).

    Raises UserError if a number is out of range.
    """

    cache_gib: float = 32.0  # of local disk for copies of remote shards; evicts the least recent
    attempts: int = 5  # before a file counts as failed; the pause doubles after each
    backoff_seconds: float = 1.0  # the first pause
    timeout_seconds: float = 60.0  # without a byte
    # A shard, local or remote, that still fails or is not a tar is skipped and counted, or stops
    # the run.
    on_failure: Literal["skip", "stop"] = "skip"

    def __post_init__(self) -> None:
        least = {"cache_gib": 0, "attempts": 1, "backoff_seconds": 0, "timeout_seconds": 0.01}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise UserError(
                    f"remote.{name}={getattr(self, name)}; accepted is a number of at least {low}"
                )
