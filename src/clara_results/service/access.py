"""Who may call: tokens as they are made and kept, and what a caller's token or network allows."""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import sqlalchemy as sa

from clara_results.domain import scopes
from clara_results.domain.clock import Clock
from clara_results.domain.scopes import EVERYTHING, AnonymousGrant, Scopes
from clara_results.errors import Conflict, NotFound, ServiceUnavailable, Unauthenticated
from clara_results.store import tokens as store
from clara_results.store.database import Database, Transaction, open_database
from clara_results.store.migrations import is_current, migrate
from clara_results.store.statements import Row

PREFIX = "crt_"
"""Begins every token, so that people and scanners for leaked secrets know one when they see it."""
SECRET_BYTES = 32
REFRESH = 2.0
"""Seconds for which the tokens read last count as the present ones; what is made or revoked takes effect within."""
USED_EVERY = timedelta(minutes=1)
"""How often a token's last use is written down at most."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as people see it: without the token itself, of which only a digest is kept.

    Attributes:
        name: By which people know it.
        scopes: What it allows.
        created_at: When it was made.
        expires_at: When it ends by itself; None: never.
        last_used_at: When it was used last, to the minute; None: never.
        revoked_at: When it was revoked; None: it was not.
    """

    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPage:
    """All tokens.

    Attributes:
        items: Each.
    """

    items: list[Token]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token that was made: the only time that it can be seen.

    Attributes:
        name: By which people know it.
        scopes: What it allows.
        expires_at: When it ends by itself; None: never.
        token: What callers show.
    """

    name: str
    scopes: list[str]
    expires_at: datetime | None
    token: str


@contextmanager
def opened(database_url: str) -> Iterator[Database]:
    """Open a database without the service, beside one that may run on it.

    Its tables are brought up to date if no service works on it, or several can.

    Raises:
        InvalidInput: They are not up to date, and a service works on it (``database-in-use``).
        ServiceUnavailable: It can't be used.
    """
    database = open_database(database_url)
    try:
        if not is_current(database.engine):
            database.start(lambda _agent: None, lambda _happened: None)
            migrate(database.engine)
        yield database
    finally:
        database.close()


def create(
    transaction: Transaction, name: str, allowed: Scopes, age: timedelta | None, now: datetime
) -> NewToken:
    """Make a token.

    Args:
        transaction: Where to write.
        name: By which people know it.
        allowed: Its scopes.
        age: For how long it counts; None: until it is revoked.
        now: The time.

    Raises:
        InvalidInput: That is no name for a token.
        Conflict: There is a token of that name.
    """
    if store.by_name(transaction.connection, scopes.token_name(name)) is not None:
        raise Conflict(
            f"there is a token {name} already; revoke it first, or choose another name",
            code="token-exists",
        )
    token = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    expires_at = None if age is None else now + age
    values = {
        "name": name,
        "token_sha256": _digest(token),
        "scopes": str(allowed),
        "created_at": now,
        "expires_at": expires_at,
    }
    store.insert_token(transaction.connection, values)
    return NewToken(name=name, scopes=sorted(allowed.names), expires_at=expires_at, token=token)


def listing(connection: sa.Connection) -> TokenPage:
    """Return all tokens that were ever made, the oldest first."""
    tokens = [
        Token(
            name=row.name,
            scopes=row.scopes.split(","),
            created_at=row.created_at,
            expires_at=row.expires_at,
            last_used_at=row.last_used_at,
            revoked_at=row.revoked_at,
        )
        for row in store.all_tokens(connection)
    ]
    return TokenPage(items=tokens)


def revoke(transaction: Transaction, name: str, now: datetime) -> int:
    """End the token of a name; return how many others are left that are not revoked.

    Raises:
        NotFound: There is none that is not revoked already.
    """
    row = store.by_name(transaction.connection, name)
    if row is None:
        raise NotFound(f"there is no token {name!r} to revoke", code="token-not-found")
    store.revoke(transaction.connection, row.id, now)
    return len(store.unrevoked(transaction.connection))


def any_token(connection: sa.Connection) -> bool:
    """Tell whether there is a token that is not revoked. An expired one counts: expiry must not open a service."""
    return bool(store.unrevoked(connection))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as far as it matters.

    Attributes:
        token: The token's name; None: there was none.
        scopes: What it may do.
    """

    token: str | None
    scopes: Scopes


@dataclass(frozen=True, slots=True)
class _Known:
    id: int
    name: str
    scopes: Scopes
    expires_at: datetime | None
    last_used_at: datetime | None


class Read(Protocol):
    """Runs an operation on a snapshot of the database; ``Engine.read``."""

    def __call__(self, operation: Callable[[sa.Connection], Any], /) -> Awaitable[Any]:
        """Run it."""
        ...


class Write(Protocol):
    """Runs an operation in a transaction; ``Engine.write``."""

    def __call__(self, operation: Callable[[Transaction], Any], /) -> Awaitable[Any]:
        """Run it."""
        ...


class Access:
    """Tells who calls. For one event loop."""

    def __init__(
        self,
        read: Read,
        write: Write,
        clock: Clock,
        grants: Sequence[AnonymousGrant],
        *,
        open_at_first: bool,
    ) -> None:
        """Make one; nothing is read yet.

        Args:
            read: Reads from the database.
            write: Writes to it.
            clock: The time.
            grants: What callers without a token may do.
            open_at_first: Whether everyone may do everything while there is neither a token nor a grant.
        """
        self._read = read
        self._write = write
        self._clock = clock
        self._grants = tuple(grants)
        self._open_at_first = open_at_first and not grants
        self._tokens: Mapping[str, _Known] = {}
        self._read_at: float | None = None
        self._reading = asyncio.Lock()
        self._noted: dict[int, datetime] = {}
        self._noting: set[asyncio.Task[None]] = set()

    async def caller(
        self, token: str | None, address: str | None, *, outage: bool = False
    ) -> Caller:
        """Tell who calls.

        Args:
            token: The bearer token that came with the call, if one did.
            address: The caller's address as the socket has it, if there is one.
            outage: Whether the tokens read last will do while the database is away.

        Raises:
            Unauthenticated: The token is unknown, revoked or expired; or there is none where one is needed.
            ServiceUnavailable: The database can't serve just now.
        """
        try:
            tokens = await self._present_tokens()
        except ServiceUnavailable:
            if not outage or self._read_at is None:
                raise
            tokens = self._tokens
        if self._open_at_first and not tokens:
            return Caller(None, EVERYTHING)
        if token is not None:
            return self._bearer(tokens, token)
        granted = [
            grant.scopes for grant in self._grants if address is not None and grant.covers(address)
        ]
        if not granted:
            raise Unauthenticated("this call needs a bearer token")
        return Caller(None, Scopes(frozenset().union(*(each.names for each in granted))))

    def _bearer(self, tokens: Mapping[str, _Known], token: str) -> Caller:
        # A look-up by digest: how long it takes tells nothing of a token that somebody could make use of.
        known = tokens.get(_digest(token))
        if known is None:
            raise Unauthenticated("the token is unknown or was revoked", code="token-invalid")
        now = self._clock.now()
        if known.expires_at is not None and known.expires_at <= now:
            raise Unauthenticated(
                f"the token {known.name} expired at {known.expires_at:%Y-%m-%d %H:%M} UTC",
                code="token-expired",
            )
        self._note_use(known, now)
        return Caller(known.name, known.scopes)

    async def _present_tokens(self) -> Mapping[str, _Known]:
        if not self._fresh():
            async with self._reading:
                if not self._fresh():  # else someone else has read them meanwhile
                    asked = self._clock.monotonic()
                    rows = await self._read(store.unrevoked)
                    self._tokens = {row.token_sha256: _known(row) for row in rows}
                    self._read_at = asked
        return self._tokens

    def _fresh(self) -> bool:
        return self._read_at is not None and self._clock.monotonic() - self._read_at < REFRESH

    def _note_use(self, token: _Known, now: datetime) -> None:
        """Have a token's use written down beside the call, if that was not done within the last minute."""
        last = self._noted.get(token.id, token.last_used_at)
        if last is not None and now - last < USED_EVERY:
            return
        self._noted[token.id] = now
        noting = asyncio.create_task(self._write_use(token.id, now))
        self._noting.add(noting)  # the loop itself would let it be collected
        noting.add_done_callback(self._noting.discard)

    async def _write_use(self, token: int, now: datetime) -> None:
        try:
            await self._write(lambda tx: store.use(tx.connection, token, now))
        except ServiceUnavailable as error:
            _log.warning("a token's use could not be written down: %s", error)


def _known(row: Row) -> _Known:
    allowed = Scopes(frozenset(row.scopes.split(",")))
    return _Known(row.id, row.name, allowed, row.expires_at, row.last_used_at)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
