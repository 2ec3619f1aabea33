"""Number of tokens of captions before any cut."""

from collections.abc import Sequence

import numpy as np

from clip_jax.text.tokenizer import Tokenizer

LONGEST = 4096  # tokens; the count of a longer caption too
_CAPTIONS_AT_ONCE = 256  # rows of LONGEST ids: 4 MiB


def token_lengths(tokenizer: Tokenizer, captions: Sequence[str]) -> np.ndarray:
    """int64 (N,): tokens of each caption, special ones included, at most `LONGEST`."""
    long = tokenizer.with_context_length(max(LONGEST, tokenizer.context_length))
    lengths = [
        # Every row has an end of text, followed only by padding.
        np.argmax(
            long(captions[start : start + _CAPTIONS_AT_ONCE], truncate=True) == long.eos_id, 1
        )
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE)
    ]
    return np.concatenate(lengths) + 1 if lengths else np.zeros(0, np.int64)
