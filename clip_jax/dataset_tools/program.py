"""Dispatch to a command: its flags, help and run."""

import importlib
from collections.abc import Sequence

from absl import flags

from clip_jax import command_line
from clip_jax.dataset_tools.data_flags import gather_overrides
from clip_jax.dataset_tools.workers import quiet_about_images
from clip_jax.errors import UserError

# Command -> module with its FLAGS and main, imported on demand.
COMMANDS = {
    "inspect": "inspect.command",
    "verify": "verify",
    "convert": "convert.command",
    "tokenizer": "tokenizer",
    "index": "index",
    "hashes": "hashes",
}
_HELP = {"-h", "--help", "-help", "--helpfull", "--helpshort"}


def run(argv: Sequence[str], about: str) -> None:
    """Runs `argv` = [program, command, flags …] and exits: 0, the command's own code, or 2 after a
    mistake. `about` is the general help."""
    if len(argv) > 1 and argv[1] in {*_HELP, "help"}:
        print(about.strip() + "\n\nThe flags of a command: COMMAND --help")
        raise SystemExit(0)
    # Each command has its own flags, so that two commands may use the same name.
    command_line.run(lambda: _run_command(argv), argv[:1])


def _run_command(argv: Sequence[str]) -> int | None:
    if len(argv) < 2 or argv[1] not in COMMANDS:
        problem = f"command {argv[1]!r} is unknown" if len(argv) > 1 else "command is missing"
        raise UserError(f"{problem}; known are {', '.join(COMMANDS)}")
    command = importlib.import_module(f"clip_jax.dataset_tools.{COMMANDS[argv[1]]}")
    values: flags.FlagValues = command.FLAGS
    if _HELP & set(argv[2:]):
        print(f"{(command.__doc__ or '').strip()}\n\nFlags:")
        print(_flag_help(values))
        return 0
    values.unparse_flags()  # an earlier run in this process may have set them
    try:
        rest = values([argv[1], *gather_overrides(argv[2:])])
    except flags.Error as error:
        raise UserError(str(error)) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r}: flags only, such as --data=…; see {argv[1]} --help")
    quiet_about_images()
    code: int | None = command.main()
    return code


def _flag_help(values: flags.FlagValues) -> str:
    """Help text with one line per flag, sorted by name."""
    lines = []
    for name in sorted(values):
        flag = values[name]
        about = flag.help.partition(";\n    repeat")[0]  # absl's note on flags with many values
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        lines.append(f"  --{name}: {about}{default}")
    return "\n".join(lines)
