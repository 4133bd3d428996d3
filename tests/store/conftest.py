"""Fixtures for tests of the store: a migrated database of each kind."""

from collections.abc import Iterator

import pytest

from clara_results.store.database import Database, open_database
from clara_results.store.migrations import migrate


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Open a migrated database."""
    database = open_database(database_url)
    try:
        migrate(database.engine)
        yield database
    finally:
        database.close()
