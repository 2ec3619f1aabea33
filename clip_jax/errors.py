"""Errors that a user sees instead of a traceback."""

from typing import Any

# A training run prints this after Ctrl-C.
INTERRUPTED = "interrupted; the same command goes on from the newest checkpoint"


class UserError(Exception):
    """Mistake that the user can correct: a wrong key, file or value.

    The message is one line that names the key or file, the value, and what would be accepted.
    Programs print it and exit with status 2, without a traceback.
    """


class DecodeError(UserError):
    """Sample that cannot be used; the message is one line with the reason.

    It is a `UserError`, so that a program given one bad image ends with one line. The pipelines of
    training and evaluation catch it, count it by its kind (`data.records.KINDS`) and go on. `shard`
    is a file that cannot be read at all; it counts once for all its samples.
    """

    def __init__(
        self, message: str, kind: str = "image_undecodable", shard: str | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.shard = shard

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.kind, self.shard)


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Returns an error's message on one line of at most `limit` characters.

    A longer one is cut between words and ends in "…". An empty one becomes the name of the error's
    type.
    """
    text = " ".join(str(error).split())
    if not text and isinstance(error, BaseException):
        return type(error).__name__
    if len(text) <= limit:
        return text
    cut = text[: limit - 1]
    if not text[limit - 1].isspace() and " " in cut:
        cut = cut.rpartition(" ")[0]
    return cut.rstrip(" ,;:.(") + "…"


def first_line(error: BaseException, with_type: bool = False) -> str:
    """Returns the first line of an error's message, at most 300 characters; its type if empty.

    `with_type` puts the type first, as in "OSError: no route".
    """
    name = type(error).__name__
    lines = str(error).strip().splitlines()
    if not lines:
        return name
    text = one_line(lines[0].rstrip("."))
    return f"{name}: {text}" if with_type else text
