"""WinoGAViL: which candidate images does a cue word bring to mind (Bitton et al. 2022)?

Protocol: the cue's k most similar candidates, k being the number of associated ones, are compared
with these by Jaccard's index. Prompt and grouping by the number of candidates as in DataComp's
evaluation (eval_utils/wino_eval.py of github.com/mlfoundations/datacomp).
"""

import ast
import csv
import json
from pathlib import Path
from typing import NamedTuple

from clip_jax.errors import UserError


class Association(NamedTuple):
    """One problem: a cue, the names of the candidate images, and whether each is associated."""

    cue: str
    candidates: tuple[str, ...]
    is_associated: tuple[bool, ...]

    @property
    def prompt(self) -> str:
        """The cue as a text tower gets it, such as "An apple"."""
        cue = self.cue.lower()
        return f"{'An' if cue[:1] in tuple('aeiou') else 'A'} {cue}"


def read_associations(folder: str) -> list[Association]:
    """Reads the only CSV file of a folder: columns cue, candidates and associations (lists).

    Raises UserError: no such file or several, or a row that is no problem.
    """
    tables = sorted(Path(folder).glob("*.csv"))
    if len(tables) != 1:
        raise UserError(
            f"{folder}: has {len(tables)} CSV files; give a folder with WinoGAViL's one and images"
        )
    problems: list[Association] = []
    try:
        with open(tables[0], encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                candidates, associations = _list(row["candidates"]), _list(row["associations"])
                unknown = set(associations) - set(candidates)
                if not associations or unknown:
                    raise ValueError(f"associations {associations} of {candidates}")
                marks = tuple(name in associations for name in candidates)
                problems.append(Association(row["cue"], tuple(candidates), marks))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{tables[0]} cannot be read: {error}") from error
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise UserError(
            f"{tables[0]}, row {len(problems) + 1}: {error}; accepted are columns cue, candidates"
            " and associations, the latter two lists of names"
        ) from error
    if not problems:
        raise UserError(f"{tables[0]}: has no row")
    return problems


def _list(text: str) -> list[str]:
    """Parses a list of names as JSON or Python writes it."""
    try:
        found = json.loads(text)
    except ValueError:
        found = ast.literal_eval(text)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{text[:60]} is no list of names")
    return found
