"""The recipes of docs/architecture.md, as configuration files."""

import re
from pathlib import Path
from typing import Any

from places import REPOSITORY

from clip_jax.command_line import read_config

PAGE = REPOSITORY / "docs" / "architecture.md"
CONFIG = """{recipe}

from tiny import tiny_config


def get_config():
    return tiny_config(**{changes!r})
"""


def recipe(title: str) -> str:
    """Returns the first block of Python after the bold title."""
    found = re.search(
        rf"\*\*{title}\*\*.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None, f"{PAGE} has no recipe for {title!r}"
    return found[1]


def config_with(title: str, folder: Path, **changes: Any) -> Any:
    """Reads a configuration file that begins with the recipe; `changes` are of the tiny run."""
    path = folder / "config.py"
    path.write_text(CONFIG.format(recipe=recipe(title), changes=changes), encoding="utf-8")
    return read_config(str(path), [])
