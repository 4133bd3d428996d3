"""What a token allows its bearer to do."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from clara_results.domain import names
from clara_results.errors import ClaraResultsError, InvalidInput

PLAIN = ("register", "read", "operate", "admin")
AGENT = "agent:"
RULE = "register, agent:NAME (agent:* for every agent), read, operate, admin"
_IMPLIED = {"admin": {"operate", "read", "register"}, "operate": {"read"}}


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

    def allow(self, scope: str) -> bool:
        """Tell whether a plain scope is among them."""
        return scope in self.names or any(scope in _IMPLIED.get(name, ()) for name in self.names)

    def allow_agent(self, agent: str | None) -> bool:
        """Tell whether they allow acting as an agent; None: as any at all."""
        agents = {name.removeprefix(AGENT) for name in self.names if name.startswith(AGENT)}
        return bool(agents) if agent is None else bool(agents & {agent, "*"})


EVERYTHING = Scopes(frozenset({"admin", AGENT + "*"}))


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
    if text in PLAIN or text == AGENT + "*":
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


def parse_grant(text: str) -> AnonymousGrant:
    """Read a grant such as ``register,agent:clarascu@10.42.0.0/16``.

    Raises:
        InvalidInput: It is not of that form.
    """
    scopes, _, network = text.partition("@")
    try:
        return AnonymousGrant(parse_scopes(scopes), ipaddress.ip_network(network))
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} is not a grant such as register,agent:clarascu@10.42.0.0/16: {error}",
            code="invalid-grant",
        ) from error
