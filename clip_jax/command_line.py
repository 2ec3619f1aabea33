"""How every program starts and ends: flags, one line for a user's mistake, exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from clip_jax.errors import UserError


def run(main: Callable[[], int | None], argv: Sequence[str] | None = None) -> None:
    """Parses absl flags, calls `main`, exits 0, its own code, or 2 after a user's mistake.

    A mistake is one line on stderr that begins with "error:"; only our own defects end in a
    traceback.
    """
    argv = list(sys.argv if argv is None else argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING)
    app.define_help_flags()
    flags.FLAGS.set_default("showprefixforinfo", False)
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"{rest[1]!r}: flags only, such as --config=…; see --help")
        code = main()
    except (UserError, flags.Error) as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)


def fail(message: str) -> Any:
    """Prints one line and exits 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
