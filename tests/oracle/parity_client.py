"""Our side of the references: a process in their environment, a cache of what it made, results."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from families import Family

HERE = Path(__file__).parent
SOURCES = ("references.py", "reference_builders.py", "random_weights.py")
CACHE = HERE.parents[1] / ".cache" / "oracle"


def slug(name: str) -> str:
    """A family's name as a file's."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


class References:
    """The program references.py, asked over a pipe."""

    def __init__(self, python: Path):
        CACHE.mkdir(parents=True, exist_ok=True)
        self._log = (CACHE / "references.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [python, HERE / "references.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.versions: dict[str, str] = self.ask(do="versions")
        (CACHE / "versions.json").write_text(json.dumps(self.versions), encoding="utf-8")

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request; its traceback as an error where it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the references ended; see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the reference failed on {request}:\n{answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _key(self, *of: Any) -> str:
        digest = hashlib.sha256(repr((*of, sorted(self.versions.items()))).encode())
        for name in SOURCES:
            digest.update((HERE / name).read_bytes())
        return digest.hexdigest()[:16]

    def made(self, family: Family) -> Path:
        """The folder of a family's reference, made anew when anything it hangs on has changed."""
        start = slug(family.name)
        folder = CACHE / "references" / f"{start}={self._key(family)}"
        if not (folder / "done").exists():
            for old in folder.parent.glob(f"{start}=*"):
                shutil.rmtree(old)
            self.ask(do="make", family=family.name, folder=str(folder))
            (folder / "done").touch()
        return folder

    def run(self, family: Family, layout: str, folder: Path, inputs: Path) -> dict[str, np.ndarray]:
        """The reference's outputs with the weights of a folder of ours."""
        outputs = folder.with_name(f"{folder.name}-outputs.npz")
        self.ask(
            do="run",
            family=family.name,
            layout=layout,
            folder=str(folder),
            inputs=str(inputs),
            outputs=str(outputs),
        )
        return load_arrays(outputs)

    def counts(self, names: list[str]) -> dict[str, int]:
        """Trainable scalars of the full-size models that the references have under these names."""
        path = CACHE / f"counts={self._key()}.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        missing = [name for name in names if name not in known]
        if missing:
            known |= self.ask(do="count", names=missing)
            path.write_text(json.dumps(known), encoding="utf-8")
        return {name: known[name] for name in names}


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file."""
    with np.load(path) as file:
        return dict(file)


class Cell:
    """What one test measured; one cell of the table, kept in a file for report.py."""

    def __init__(self, family: str, check: str):
        self._path = CACHE / "results" / slug(family) / f"{check}.json"
        self._path.unlink(missing_ok=True)
        self._measured: dict[str, Any] = {}
        self._failed: list[str] = []

    def note(self, **values: Any) -> None:
        """A fact for the table."""
        self._measured |= values

    def at_most(self, name: str, value: float, limit: float) -> None:
        """The largest value seen under a name; one above the limit fails the test in `close`."""
        value = float(value)
        self._measured[name] = max(value, self._measured.get(name, value))
        if not value <= limit:  # NaN fails too
            self._failed.append(f"{name} = {value:.3g}, more than {limit:.3g}")

    def close(self) -> None:
        """Writes the cell, and fails where a limit was passed."""
        self._write(passed=not self._failed)
        assert not self._failed, "; ".join(self._failed)

    def broken(self) -> None:
        """For a test that ended before it had measured all."""
        if not self._path.exists():
            self._write(passed=False)

    def _write(self, passed: bool) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({"passed": passed, **self._measured}), encoding="utf-8")
