"""The table of the parity suite, from what its tests measured: printed, and docs/parity.md.

Run it after them, from anywhere: `python tests/oracle/report.py`; exit status 1 where a cell failed
or is missing.
"""

import json
import sys
from pathlib import Path
from typing import Any

from families import FAMILIES, Family
from parity_client import CACHE, slug

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
CHECKS = {
    "count": "count exact",
    "forward": "forward",
    "import": "import",
    "export": "export",
    "round_trip": "round trip",
    "bfloat16": "bfloat16",
}
SHORT = {"open_clip": "open_clip", "huggingface": "HF", "clip_jax": "clip_jax"}
INTRODUCTION = """\
# Parity

Made by `make test-parity`; every cell is what a test measured
(`tests/weights/test_parity_families.py`).

The references are {versions}, on the CPU, in float32.
Models have the released widths and random values in every parameter; depth and vocabulary are
reduced, but for RN50 and ViT-B-32 (`tests/oracle/families.py`).

- **count exact**: the full-size models have the reference's number of parameters; how many names.
- **forward**: largest difference of an L2-normalised embedding from the reference's (allowed 2e-5),
  the cosine being at least 0.999999 everywhere; **logits**: the same at scale 100 (allowed 1e-3).
- **import**: the reference's own folder or file is read, every tensor used.
- **export**: the reference library reads our folder and gives its own first outputs.
- **round trip**: what was exported is imported again bit for bit; in which formats.
- **bfloat16**: 1 − cosine to our float32 outputs (allowed 1e-3).

"""


def cell(family: Family, check: str) -> dict[str, Any] | None:
    """What a test measured, or None where it did not run."""
    path = CACHE / "results" / slug(family.name) / f"{check}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def expected(family: Family, check: str) -> bool:
    """Whether the family has such a cell."""
    return {"count": bool(family.names), "export": bool(family.formats)}.get(check, True)


def shown(check: str, found: dict[str, Any]) -> str:
    """A cell's text."""
    if not found["passed"]:
        return "**fails**"
    if check == "count":
        return f"yes ({len(found['names'])})"
    if check in ("round_trip", "export"):
        return ", ".join(SHORT[name] for name in found["formats"])
    if check == "forward":
        return f"{found['delta']:.0e}"
    return f"{found['1 - cosine']:.0e}" if check == "bfloat16" else "yes"


def table() -> tuple[list[list[str]], list[str]]:
    """Rows of texts, and the cells that are wrong or missing."""
    rows, wrong = [["family", "reference", *CHECKS.values(), "logits"]], []
    for family in FAMILIES.values():
        texts = [family.name, REFERENCES[family.layout]]
        for check in CHECKS:
            found = cell(family, check)
            if not expected(family, check):
                texts.append("–")
            else:
                texts.append("not run" if found is None else shown(check, found))
                if found is None or not found["passed"]:
                    wrong.append(f"{family.name}: {check}")
        forward = cell(family, "forward") or {}
        texts.append(f"{forward['logits']:.0e}" if "logits" in forward else "–")
        rows.append(texts)
    return rows, wrong


REFERENCES = {
    "open_clip": "open_clip",
    "openai": "open_clip, OpenAI's archive",
    **dict.fromkeys(("clip", "metaclip_2", "siglip", "siglip2", "dual"), "transformers"),
}


def more() -> tuple[list[str], list[str]]:
    """Sentences on gradients, training and captions, and what is wrong or missing of them."""
    lines, wrong = [], []
    for family in FAMILIES.values():
        wanted = {"gradients": family.gradients, "training": family.training}
        for check in (check for check, there in wanted.items() if there):
            found = cell(family, check)
            if found is None or not found["passed"]:
                wrong.append(f"{family.name}: {check}")
            if found is None or ("relative" not in found and "deviation" not in found):
                continue
            if check == "gradients":
                lines.append(
                    f"- {family.name}: gradients of the softmax loss with respect to all "
                    f"{found['parameters']} tensors, largest relative error "
                    f"{found['relative']:.1e} of torch's in float64 (allowed 1e-4)."
                )
            else:
                losses = found["losses"]
                lines.append(
                    f"- {family.name}: {len(losses)} AdamW steps from {losses[0]:.3f} to "
                    f"{losses[-1]:.3f}, the loss within {found['deviation']:.1e} of torch's at "
                    "every step (allowed 1e-4)."
                )
        forward = cell(family, "forward") or {}
        if "caption_logits" in forward:
            line = f"- {family.name}: caption logits, largest relative error "
            line += f"{forward['caption_logits']:.1e} (allowed 2e-5)"
            if "different caption ids" in forward:
                same = not forward["different caption ids"]
                line += "; greedy captions " + ("equal" if same else "**differ**")
            lines.append(f"{line}.")
    return lines, wrong


def main() -> None:
    rows, wrong = table()
    lines, wrong_lines = more()
    wrong += wrong_lines
    versions_file = CACHE / "versions.json"
    versions = json.loads(versions_file.read_text("utf-8")) if versions_file.exists() else {}
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    padded = [[x.ljust(w) for x, w in zip(row, widths, strict=True)] for row in rows]
    text = "".join(f"| {' | '.join(row)} |\n" for row in padded)
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    page = INTRODUCTION.format(versions=names) + text + "\n" + "\n".join(lines) + "\n"
    PAGE.write_text(page, encoding="utf-8")
    print(text, *lines, "", sep="\n")
    print(f"wrote {PAGE.relative_to(PAGE.parents[1])}")
    if wrong:
        sys.exit(f"{len(wrong)} cells failed or are missing: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
