"""Draws docstrings, comments and messages of the package at random, for a reader before a review.

python tests/repository/draw_prose.py --count=60 --seed=0
python tests/repository/draw_prose.py --stilted    # all that begin against the rule
"""

import argparse
import ast
import io
import random
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "clip_jax"
# A docstring starts with a verb or the noun that it returns, a comment has a subject.
STILTED = re.compile(
    r"(Of|What|That|Those|Where|Which|Whose|By which|In which|From which|As far as|How|Here|There"
    r"|With which|To which|Without (?!loss)|Else|Such)\b"
)


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring's first paragraph and of each block of comments."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, " ".join(text.split("\n\n")[0].split())
    last = -1
    block: list[str] = []
    start = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.string.startswith(("# noqa", "# type", "#!")):
            continue
        line = token.start[0]
        if line != last + 1 and block:
            yield start, " ".join(block)
            block = []
        if not block:
            start = line
        block.append(token.string.lstrip("# "))
        last = line
    if block:
        yield start, " ".join(block)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stilted", action="store_true")
    options = parser.parse_args()
    found = [
        (path, line, text)
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in prose_of(path)
    ]
    stilted = [item for item in found if STILTED.match(item[2])]
    chosen = stilted
    if not options.stilted:
        chosen = random.Random(options.seed).sample(found, min(options.count, len(found)))
    for path, line, text in chosen:
        mark = "!" if STILTED.match(text) else " "
        print(f"{mark} {path.relative_to(PACKAGE.parent)}:{line}: {text}")
    print(f"{len(stilted)} of {len(found)} begin against the rule")


if __name__ == "__main__":
    main()
