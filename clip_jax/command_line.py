"""Start and end of every program: flags, one line for a user's mistake, exit codes."""

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from clip_jax.errors import UserError
from clip_jax.files.disk import unwritable
from clip_jax.hosts.memory import keep_freed_memory

_BROKEN_PIPE = 128 + 13  # exit status that shells give a program killed by SIGPIPE


def run(
    main: Callable[[], int | None],
    argv: Sequence[str] | None = None,
    interrupted: str = "interrupted",
) -> None:
    """Parses absl flags, calls `main`, exits with its code (default 0), or 2 after a UserError.

    A user's mistake or a full disk becomes one line on stderr that begins with "error:"; only
    defects of this package end in a traceback. Ctrl-C prints the line `interrupted` and exits 130.
    """
    argv = list(sys.argv if argv is None else argv)
    keep_freed_memory()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # orbax logs through absl every missing optional metadata file, and a page for each thread that
    # an error ends, although it also raises the error.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sys.unraisablehook = _without_closed_loops(sys.unraisablehook)
    # A compiled program that cannot be cached, on a full disk, is simply compiled again.
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation cache entry")
    # A checkpoint that cannot be written leaves orbax's other writes behind, which nobody awaits.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if {"-h", "--help", "-help", "--helpfull"} & set(argv[1:]):
        program = sys.modules["__main__"]
        print(f"{(program.__doc__ or '').strip()}\n\nFlags:")
        print(flags.FLAGS.module_help(program))
        sys.exit(0)
    try:
        app.define_help_flags()
        _parse(argv)
        code = main()
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("\n" + interrupted, file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # from `| head`, say
        # Output that is flushed at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except Exception as error:
        told = unwritable(error)
        if told is None:
            raise
        fail(str(told))
    sys.exit(code or 0)


def _without_closed_loops(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns the hook without the errors of tensorstore's threads after a failed checkpoint.

    Each thread reports its end to an event loop that the first error has closed.
    """

    def chosen(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return chosen


def read_config(start: Any, overrides: Sequence[str]) -> Any:
    """Returns the trainer's `ConfigDict` for `start`, a file's path or a `ConfigDict`, as changed.

    For programs with other flags. An override is like "--config.batch_size=64". Raises `UserError`.
    """
    from ml_collections import config_flags

    values = flags.FlagValues()
    argv = ["", *([f"--config={start}"] if isinstance(start, str) else []), *overrides]
    with _explained(argv):
        if isinstance(start, str):
            flag = config_flags.DEFINE_config_file(
                "config", None, flag_values=values, sys_argv=argv, lock_config=True
            )
        else:
            flag = config_flags.DEFINE_config_dict(
                "config", start, flag_values=values, sys_argv=argv
            )
    _parse(argv, values)
    return config_dict(flag, values)


def config_dict(flag: Any, values: flags.FlagValues = flags.FLAGS) -> Any:
    """Returns the `ConfigDict` of a `--config` flag's file, as changed by further flags.

    Raises `UserError` if the flag is missing, or its file is no configuration file.
    """
    from ml_collections import config_flags
    from ml_collections.config_dict import ConfigDict

    if flag.value is None:
        raise UserError("--config: is missing; give a file, such as --config=configs/quickstart.py")
    if not isinstance(flag.value, ConfigDict):
        path = config_flags.get_config_filename(values[flag.name])
        found = (
            "has no get_config() that returns a ConfigDict"
            if Path(path).exists()
            else "no such file"
        )
        raise UserError(f"--config={path}: {found}; give a file, such as configs/quickstart.py")
    return flag.value


def _parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses the flags, which runs the configuration file. Raises `UserError` for any mistake."""
    with _explained(argv):
        rest = values(argv)
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r}: flags only, such as --config=…; see --help")


@contextlib.contextmanager
def _explained(argv: list[str]) -> Iterator[None]:
    """Turns any error from parsing flags into a `UserError`."""
    try:
        yield
    except flags.Error as error:
        raise UserError(str(error)) from error
    except Exception as error:  # a configuration file is code and may raise anything
        raise UserError(_explain(error, argv)) from error


def _explain(error: Exception, argv: list[str]) -> str:
    """Explains an error from running a configuration file or changing it by flags."""
    from flax.traverse_util import flatten_dict

    from clip_jax.training.config import default_config
    from clip_jax.typed_values import unknown_key

    known = ["config." + key for key in flatten_dict(default_config().to_dict(), sep=".")]
    for argument in argv[1:]:
        key = argument.lstrip("-").split("=")[0]
        if key.startswith("config.") and key not in known:
            whole = key.partition("[")[0]
            if whole in known and isinstance(error, IndexError):
                return f"{key}: the file has no such group; give all as --{whole}=({{…}}, {{…}})"
            return unknown_key(key, known)
    path = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), None)
    if path and not Path(path.partition(":")[0]).exists():
        return f"--config={path}: no such file; give a file, such as configs/quickstart.py"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if path and frame.filename.endswith(path)]
    where = f"--config={path}: " if path else ""
    if inside:
        where = f"{path}, line {inside[-1].lineno}: "
    return f"{where}{type(error).__name__}: {error}"


def fail(message: str) -> Any:
    """Prints one line and exits 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
