"""What a token allows its bearer to do, and what callers without one may."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from clara_results.domain import names
from clara_results.errors import ClaraResultsError, InvalidInput

PLAIN = ("register", "read", "operate", "admin")
AGENT = "agent:"
EVERY_AGENT = AGENT + "*"
RULE = "register, agent:NAME (agent:* for every agent), read, operate, admin"
NAME_RULE = "1 to 64 letters, digits, '.', '_' or '-'; begins with a letter or a digit"
AGE_RULE = "a number and m, h or d: 30m, 12h, 90d"
_IMPLIED = {"admin": {"operate", "read", "register"}, "operate": {"read"}}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_AGE = re.compile(r"([1-9][0-9]{0,5})([mhd])", re.ASCII)
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


@dataclass(frozen=True, slots=True)
class Scopes:
    """A set of scopes. ``admin`` holds operate, read and register; ``operate`` holds read.

    Attributes:
        names: As they were given.
    """

    names: frozenset[str]

    def __str__(self) -> str:
        """Return them as they are given and stored."""
        return ",".join(sorted(self.names))

    @property
    def every_agent(self) -> bool:
        """Whether they allow acting as whichever agent."""
        return EVERY_AGENT in self.names

    @property
    def some_agent(self) -> bool:
        """Whether there is an agent that they allow acting as."""
        return any(name.startswith(AGENT) for name in self.names)

    def allow(self, scope: str) -> bool:
        """Tell whether a plain scope is among them."""
        return scope in self.names or any(scope in _IMPLIED.get(name, ()) for name in self.names)

    def allow_agent(self, agent: str) -> bool:
        """Tell whether they allow acting as an agent, named as ``names.agent_name`` returns it."""
        return self.every_agent or AGENT + agent in self.names


EVERYTHING = Scopes(frozenset({"admin", EVERY_AGENT}))


def parse_scopes(given: str | Iterable[str]) -> Scopes:
    """Read scopes: a list, or text with commas.

    Raises:
        InvalidInput: One is unknown, or there is none.
    """
    parts = given.split(",") if isinstance(given, str) else given
    found = frozenset(_scope(part.strip()) for part in parts if part.strip())
    if not found:
        raise InvalidInput(f"give at least one scope of: {RULE}", code="invalid-scope")
    return Scopes(found)


def _scope(text: str) -> str:
    if text in PLAIN or text == EVERY_AGENT:
        return text
    if text.startswith(AGENT):
        try:
            return AGENT + names.agent_name(text.removeprefix(AGENT))
        except ClaraResultsError as error:
            raise InvalidInput(f"scope {text!r}: {error}", code="invalid-scope") from error
    raise InvalidInput(f"{text!r} is not a scope; there are: {RULE}", code="invalid-scope")


@dataclass(frozen=True, slots=True)
class AnonymousGrant:
    """What callers without a token may do, if they come from a network.

    Attributes:
        scopes: What.
        network: From where.
    """

    scopes: Scopes
    network: ipaddress.IPv4Network | ipaddress.IPv6Network

    def covers(self, address: str) -> bool:
        """Tell whether a caller's address, as the socket has it, is of the network."""
        caller = ipaddress.ip_address(address)
        # A socket for both families shows IPv4 callers as ::ffff:a.b.c.d (RFC 4291 2.5.5.2).
        mapped = getattr(caller, "ipv4_mapped", None)
        return (mapped or caller) in self.network


def parse_grant(text: str) -> AnonymousGrant:
    """Read a grant such as ``register,agent:clarascu@10.42.0.0/16``.

    Raises:
        InvalidInput: It is not of that form.
    """
    scopes, _, network = text.partition("@")
    try:
        return AnonymousGrant(parse_scopes(scopes), ipaddress.ip_network(network.strip()))
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} is not a grant such as register,agent:clarascu@10.42.0.0/16: {error}",
            code="invalid-grant",
        ) from error


def token_name(name: str) -> str:
    """Check the name by which people know a token.

    Raises:
        InvalidInput: It breaks ``NAME_RULE``.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} is not a token's name: {NAME_RULE}", code="invalid-name")
    return name


def token_age(text: str) -> timedelta:
    """Read for how long a token counts.

    Raises:
        InvalidInput: It breaks ``AGE_RULE``.
    """
    found = _AGE.fullmatch(text)
    if found is None:
        raise InvalidInput(f"{text!r} is not {AGE_RULE}", code="invalid-age")
    return int(found[1]) * _UNITS[found[2]]
