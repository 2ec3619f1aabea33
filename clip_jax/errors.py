"""What a user is told instead of a traceback."""

# After Ctrl-C in a training run.
INTERRUPTED = "interrupted; the same command goes on from the newest checkpoint"


class UserError(Exception):
    """Something the user can put right: a wrong key, file or value.

    The message is one line that names the key or file, the value, and what would be accepted.
    Programs print it and exit with status 2; nobody ever sees it as a traceback.
    """
