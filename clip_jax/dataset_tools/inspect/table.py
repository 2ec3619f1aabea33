"""Table on the page of `inspect`."""

from collections.abc import Sequence

from clip_jax.report import page


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table of plain text with titles; the first `texts` columns are words, the rest numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f'<th class="name" style="text-align:left">{page.text(page.short(value))}</th>'
            if column < texts
            else f'<{tag} style="text-align:right">{page.text(value)}</{tag}>'
            for column, value in enumerate(values)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        '<div class="card scroll"><table class="metrics">\n'
        f"<thead><tr>{cells('th', titles)}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
