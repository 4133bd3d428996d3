"""How the tables came to be, step by step (Alembic). A released step never changes."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from clara_results.errors import ServiceUnavailable


def migrate(engine: sa.Engine) -> None:
    """Bring a database's tables to this version's form.

    Raises:
        ServiceUnavailable: The database can't be opened, or a newer version of the package has been at it.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    try:
        with engine.begin() as connection:
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
        raise ServiceUnavailable(
            f"the database {engine.url.render_as_string()} can't be used: {error.orig}",
            code="database-unavailable",
        ) from error
