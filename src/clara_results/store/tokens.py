"""Statements on tokens. One function a statement."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from clara_results.store.schema import tokens
from clara_results.store.statements import Row


def insert_token(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Add a token."""
    connection.execute(tokens.insert().values(**values))


def all_tokens(connection: sa.Connection) -> Sequence[Row]:
    """Return all tokens, the oldest first."""
    return connection.execute(sa.select(tokens).order_by(tokens.c.id)).all()


def unrevoked(connection: sa.Connection) -> Sequence[Row]:
    """Return the tokens that are not revoked, expired or not."""
    return connection.execute(sa.select(tokens).where(tokens.c.revoked_at.is_(None))).all()


def by_name(connection: sa.Connection, name: str) -> Row | None:
    """Return the token of a name that is not revoked."""
    found = sa.select(tokens).where(tokens.c.name == name, tokens.c.revoked_at.is_(None))
    return connection.execute(found).one_or_none()


def revoke(connection: sa.Connection, token: int, at: datetime) -> None:
    """End a token."""
    connection.execute(tokens.update().where(tokens.c.id == token).values(revoked_at=at))


def use(connection: sa.Connection, token: int, at: datetime) -> None:
    """Note that a token was used."""
    connection.execute(tokens.update().where(tokens.c.id == token).values(last_used_at=at))
