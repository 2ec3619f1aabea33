"""Options for reading remote files."""

from dataclasses import dataclass
from typing import Annotated, Literal

from clip_jax.arguments import Checked, Range


@dataclass(frozen=True)
class RemoteOptions(Checked):
    """Options for reading remote files (gs://, s3://, hf://, https://, …).

    Raises UserError if a number is out of range.
    """

    # Local disk for copies of remote shards; the least recent make room.
    cache_gib: Annotated[float, Range(0)] = 32.0
    # Attempts before a file counts as failed; the pause doubles after each.
    attempts: Annotated[int, Range(1)] = 5
    backoff_seconds: Annotated[float, Range(0)] = 1.0  # the first pause
    timeout_seconds: Annotated[float, Range(0.01)] = 60.0  # without a byte
    # A shard, local or remote, that still fails or is not a tar is skipped and counted, or stops
    # the run.
    on_failure: Literal["skip", "stop"] = "skip"
