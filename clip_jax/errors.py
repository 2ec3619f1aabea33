"""What a user is told instead of a traceback."""

from typing import Any

# After Ctrl-C in a training run.
INTERRUPTED = "interrupted; the same command goes on from the newest checkpoint"


class UserError(Exception):
    """Something the user can put right: a wrong key, file or value.

    The message is one line that names the key or file, the value, and what would be accepted.
    Programs print it and exit with status 2; nobody ever sees it as a traceback.
    """


class DecodeError(UserError):
    """A sample that cannot be used; the message is one line with the reason.

    It is a `UserError`, so that a program which is given one bad image ends with one line; the
    pipelines of training and evaluation catch it, count it by its kind (`data.records.KINDS`) and
    go on. `shard`: the file that cannot be read at all, with whatever else is in it; it is counted
    once for all its samples.
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
    """The message of an error, such as another library's, in one line of at most `limit` letters.

    What is longer ends between two words, with "…". The name of the error's type stands in for a
    message that is empty.
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
    """The first line of an error's message, of at most 300 letters; its type where it is empty.

    `with_type`: the type comes first, as in "OSError: no route".
    """
    name = type(error).__name__
    lines = str(error).strip().splitlines()
    if not lines:
        return name
    text = one_line(lines[0].rstrip("."))
    return f"{name}: {text}" if with_type else text
