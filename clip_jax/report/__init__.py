"""Report of a run: one HTML file with its figures, its curves, and its answers on images.

`python -m clip_jax.report --workdir=runs/quickstart` writes it again.
"""

from pathlib import Path

from clip_jax.files.disk import write_text, writing

REPORT = "report.html"


def write_report(workdir: Path) -> Path:
    """Writes `workdir`/report.html from the files in the run's folder, and returns its path.

    Missing parts (no evaluation yet, data that has moved away) are left out with a reason. Raises
    `UserError` if `workdir` is not a run, or cannot be written.
    """
    # The import is local because it needs matplotlib and jax.
    from clip_jax.report.inputs import read_run
    from clip_jax.report.sections import build_page

    workdir = Path(workdir)
    page = build_page(read_run(workdir))
    with writing(workdir, "; python -m clip_jax.report then writes the report again"):
        write_text(workdir / REPORT, page)
    return workdir / REPORT
