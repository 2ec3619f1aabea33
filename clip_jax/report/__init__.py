"""The report of a run: one HTML file with its figures, its curves and what it makes of images.

`python -m clip_jax.report --workdir=runs/quickstart` writes it again.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

REPORT = "report.html"


def write_report(workdir: Path) -> Path:
    """Writes `workdir`/report.html from what is in the run's folder, and returns its path.

    What is missing (no evaluation yet, data that has moved away) is left out with a sentence that
    says why. Raises `UserError` where `workdir` is not a run.
    """
    # Imported here: matplotlib and jax are not needed to name this module.
    from clip_jax.report.inputs import read_run
    from clip_jax.report.sections import build_page

    workdir = Path(workdir)
    page = build_page(read_run(workdir))
    # Written aside and renamed: a reader, or a kill, never meets half a page. A path may hold a
    # lone surrogate (file names need not be UTF-8), which becomes "?".
    handle, aside = tempfile.mkstemp(dir=workdir, prefix=f".{REPORT}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(page)
        os.chmod(aside, 0o644)
        os.replace(aside, workdir / REPORT)
    finally:
        Path(aside).unlink(missing_ok=True)
    return workdir / REPORT
