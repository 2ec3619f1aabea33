"""Folders that the tests read: the repository, its tests, and the sample data beside it."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = REPOSITORY / "tests"
SUPPORT = TESTS / "support"
CACHE = REPOSITORY / ".cache"
# Tests that need the sample data skip where it is not.
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
