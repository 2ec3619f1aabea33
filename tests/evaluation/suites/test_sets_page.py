"""The page of sets in the docs is what the table makes."""

import importlib

import pytest
from places import REPOSITORY


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    page = importlib.import_module("sets_page")
    written = (REPOSITORY / "docs" / "sets.md").read_text("utf-8")
    assert written == page.page(written), "make it again: python benchmarks/sets_page.py"
