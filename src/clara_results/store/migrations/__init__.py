"""How the tables came to be, step by step (Alembic). A released step never changes."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from clara_results.errors import ServiceUnavailable

LOCK = 0xC1A7A
"""Advisory lock that one process holds while it migrates; the others wait, and find nothing to do."""


def is_current(engine: sa.Engine) -> bool:
    """Tell whether a database's tables have this version's form.

    Raises:
        ServiceUnavailable: The database can't be opened.
    """
    try:
        with engine.begin() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
    except sa.exc.DatabaseError as error:
        raise _unusable(engine, error) from error
    return revision == ScriptDirectory.from_config(_config()).get_current_head()


def migrate(engine: sa.Engine) -> None:
    """Bring a database's tables to this version's form.

    Raises:
        ServiceUnavailable: The database can't be opened, or a newer version of the package has been at it.
    """
    config = _config()
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":  # SQLite's writer is alone as it is
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            revision = MigrationContext.configure(connection).get_current_revision()
            known = {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}
            if revision is not None and revision not in known:
                raise ServiceUnavailable(
                    f"the database is of a newer version of clara-results (step {revision}): "
                    "start that version, or restore a backup",
                    code="database-newer",
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except sa.exc.DatabaseError as error:
        raise _unusable(engine, error) from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def _unusable(engine: sa.Engine, error: sa.exc.DatabaseError) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"the database {engine.url.render_as_string()} can't be used: {error.orig}",
        code="database-unavailable",
    )
