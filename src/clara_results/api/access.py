"""Who may call what: the one table of routes and scopes, and what holds every route to it."""

import enum
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from clara_results.api.arguments import Arguments, header
from clara_results.api.problems import problem
from clara_results.domain import names
from clara_results.errors import AccessDenied, Forbidden, InvalidInput, Unauthenticated
from clara_results.service.access import Caller
from clara_results.service.engine import Engine
from clara_results.store import tasks as store

REALM = 'Bearer realm="clara-results"'
COOKIE = "clara-results-token"
"""Holds the token of a person who has signed in to the console."""
_SAME_SITE = frozenset({"same-origin", "none"})


class As(enum.Enum):
    """As which agent a caller must be allowed to act."""

    ANY = "agent:NAME, any agent's"
    NAMED = "agent:NAME, the agent's in the path"
    HOLDER = "agent:NAME, the agent's whose task it is"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may make a call: whoever has one of the scopes, or may act as the agent. Neither: everyone.

    Attributes:
        scopes: Plain scopes, each of which is enough.
        agent: As which agent.
        outage: Whether those who were known last may call even while the database, which knows the tokens, is away.
    """

    scopes: tuple[str, ...] = ()
    agent: As | None = None
    outage: bool = False


OPEN = Rule()
REGISTER = Rule(("register",))
READ = Rule(("read",))
OPERATE = Rule(("operate",))
ADMIN = Rule(("admin",))
CLAIM = Rule(agent=As.NAMED)
REPORT = Rule(agent=As.HOLDER)
AGENT_OR_READ = Rule(("read",), As.ANY)

RULES: Mapping[tuple[str, str], Rule] = {
    ("POST", "/api/tasks"): REGISTER,
    ("GET", "/api/tasks/{agent}/pending"): CLAIM,
    ("PUT", "/api/tasks/success/{task_id}"): REPORT,
    ("PUT", "/api/tasks/failure/{task_id}"): REPORT,
    ("PUT", "/api/tasks/{task_id}/lease"): REPORT,
    ("PUT", "/api/tasks/{task_id}/release"): REPORT,
    ("PUT", "/api/tasks/{task_id}/instances"): REPORT,
    ("POST", "/api/commitments/{agent}/due"): CLAIM,
    # Any agent may hear of a transaction, whose UID can't be guessed.
    ("PUT", "/api/commitments/{transaction_uid}"): Rule(agent=As.ANY),
    ("PUT", "/api/commitments/{transaction_uid}/failure"): Rule(agent=As.ANY),
    ("GET", "/api/tasks"): READ,
    # Who registered a task was given its id, which can't be guessed, and may wait for its end.
    ("GET", "/api/tasks/{task_id}"): Rule(("read", "register")),
    ("GET", "/api/tasks/{task_id}/files"): READ,
    ("POST", "/api/tasks/concerned"): OPERATE,
    ("POST", "/api/tasks/retry"): OPERATE,
    ("POST", "/api/tasks/cancel"): OPERATE,
    ("POST", "/api/tasks/{task_id}/retry"): OPERATE,
    ("POST", "/api/tasks/{task_id}/cancel"): OPERATE,
    ("POST", "/api/tasks/{task_id}/redeliver"): OPERATE,
    ("GET", "/api/jobs/{job_id:path}"): READ,
    ("PUT", "/api/payloads/{payload_id}/files/{uri:path}"): REGISTER,
    ("GET", "/api/payloads/{payload_id}/files/{uri:path}"): AGENT_OR_READ,
    # Who uploads looks first whether that was done before.
    ("HEAD", "/api/payloads/{payload_id}/files/{uri:path}"): Rule(("read", "register"), As.ANY),
    ("GET", "/api/payloads/{payload_id}"): AGENT_OR_READ,
    ("DELETE", "/api/payloads/{payload_id}"): ADMIN,
    ("GET", "/api/destinations"): AGENT_OR_READ,
    ("POST", "/api/destinations"): OPERATE,
    ("GET", "/api/destinations/{name}"): AGENT_OR_READ,
    ("PUT", "/api/destinations/{name}"): OPERATE,
    ("DELETE", "/api/destinations/{name}"): OPERATE,
    ("POST", "/api/destinations/{name}/test"): OPERATE,
    ("POST", "/api/destinations/{name}/pause"): OPERATE,
    ("POST", "/api/destinations/{name}/resume"): OPERATE,
    ("GET", "/api/config/destinationaetitle"): AGENT_OR_READ,
    ("POST", "/api/config/destinationaetitle"): OPERATE,
    ("GET", "/api/config/destinationaetitle/{name}"): AGENT_OR_READ,
    ("DELETE", "/api/config/destinationaetitle/{name}"): OPERATE,
    # Under the task's lease, which the call shows.
    ("PUT", "/api/tasks/{task_id}/datasets/{dataset_id}/files/{uri:path}"): REPORT,
    ("PUT", "/api/tasks/{task_id}/datasets/{dataset_id}"): REPORT,
    ("GET", "/api/datasets"): READ,
    ("GET", "/api/datasets/{dataset_id}"): READ,
    ("DELETE", "/api/datasets/{dataset_id}"): ADMIN,
    ("PUT", "/api/datasets/{dataset_id}/view"): OPERATE,
    ("GET", "/api/datasets/{dataset_id}/files/{uri:path}"): READ,
    ("HEAD", "/api/datasets/{dataset_id}/files/{uri:path}"): READ,
    ("GET", "/api/agents"): READ,
    ("GET", "/api/events"): READ,
    ("GET", "/metrics"): Rule(("read",), outage=True),
    ("GET", "/health/live"): OPEN,
    ("GET", "/health/ready"): OPEN,
    ("GET", "/health/status"): OPEN,
    ("GET", "/docs"): OPEN,
    # The console
    ("GET", "/login"): OPEN,
    ("POST", "/login"): OPEN,
    ("POST", "/logout"): OPEN,
    ("GET", "/"): READ,
    ("GET", "/agents"): READ,
    ("GET", "/destinations"): READ,
    ("POST", "/destinations"): OPERATE,
    ("GET", "/destinations/new"): OPERATE,
    ("GET", "/destinations/{name}"): READ,
    ("POST", "/destinations/{name}"): OPERATE,
    ("GET", "/destinations/{name}/edit"): OPERATE,
    ("POST", "/destinations/{name}/test"): OPERATE,
    ("POST", "/destinations/{name}/pause"): OPERATE,
    ("POST", "/destinations/{name}/resume"): OPERATE,
    ("POST", "/destinations/{name}/delete"): OPERATE,
    ("GET", "/tasks"): READ,
    ("GET", "/tasks/{task_id}"): READ,
    ("GET", "/jobs/{job_id:path}"): READ,
    ("GET", "/thumbnails/{payload_id}/{uri:path}"): READ,
    ("GET", "/viewer/{dataset_id}"): READ,
}
"""Every route, and who may call it. A route that is not here can't be made."""


class GuardedRoute(APIRoute):
    """A route that only those may call whom RULES allow; checked before the body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler behind the check."""
        rules = {method: _rule(method, self.path) for method in self.methods or ()}
        arguments = Arguments(self)
        function = self.endpoint

        async def guarded(request: Request) -> Response:
            rule = rules[request.method]
            _check_page(request, rule)
            if rule is not OPEN:
                await _check(request, rule)
            response: Response = await function(**await arguments.of(request))
            return response

        return guarded


def install(app: FastAPI) -> None:
    """Have an app answer who may not call, and document how one shows who one is (RFC 6750)."""
    app.add_exception_handler(AccessDenied, _denied)
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for (method, path), rule in RULES.items():
            operation = document["paths"].get(path.replace(":path}", "}"), {}).get(method.lower())
            if operation is not None and rule != OPEN:
                operation["security"] = [{"token": []}, {}]  # {}: or none, where that is allowed
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def may_go_on(request: Request) -> bool:
    """Tell whether who made a call that waits for long may still make it: a token can be revoked meanwhile."""
    try:
        await _check(request, _rule(request.method, request.scope["route"].path))
    except AccessDenied:
        return False
    return True


async def caller_of(request: Request, *, outage: bool = False) -> Caller:
    """Return who makes a call.

    Args:
        request: The call.
        outage: Whether the tokens known last will do while the database is away.

    Raises:
        Unauthenticated: The token is unknown, revoked or expired; or there is none where one is needed.
        ServiceUnavailable: The database can't serve just now.
    """
    engine: Engine = request.app.state.engine
    address = request.client.host if request.client else None
    return await engine.access.caller(_bearer(request), address, outage=outage)


async def allows(request: Request, scope: str) -> bool:
    """Tell whether who makes a call has a scope."""
    return (await caller_of(request)).scopes.allow(scope)


def secured(request: Request) -> bool:
    """Tell whether a browser made a call by https, as it says itself where a proxy took TLS off."""
    origin = header(request, b"origin") or ""
    return request.url.scheme == "https" or origin.startswith("https:")


def _rule(method: str, path: str) -> Rule:
    try:
        return RULES[method, path]
    except KeyError:
        raise LookupError(
            f"{method} {path}: say in clara_results.api.access.RULES who may call it"
        ) from None


async def _check(request: Request, rule: Rule) -> None:
    engine: Engine = request.app.state.engine
    caller = await caller_of(request, outage=rule.outage)
    if rule.agent is not None and caller.scopes.every_agent:
        return
    for scope in rule.scopes:
        if caller.scopes.allow(scope):
            return
    if rule.agent is None or not caller.scopes.some_agent:
        raise _insufficient(caller, rule.scopes, rule.agent and "agent:NAME")
    if rule.agent is As.ANY:
        return
    agent = await _agent(request, engine)
    if agent is not None and not caller.scopes.allow_agent(agent):
        raise _insufficient(caller, rule.scopes, f"agent:{agent}")


async def _agent(request: Request, engine: Engine) -> str | None:
    """Return the agent that a call names or whose task it names; None: there is no such task."""
    if "agent" in request.path_params:
        return names.agent_name(request.path_params["agent"])
    try:
        task_id = str(UUID(request.path_params["task_id"]))
    except ValueError:
        raise InvalidInput("the task id is not a UUID", code="invalid-request") from None
    task = await engine.read(lambda connection: store.by_id(connection, task_id))
    return None if task is None else str(task.agent)


def _bearer(request: Request) -> str | None:
    """Return the token of a call: the bearer's (RFC 6750 2.1), or else that of who has signed in to the console.

    Another scheme's credentials are none of ours.
    """
    given = header(request, b"authorization")
    if given is None:
        return request.cookies.get(COOKIE)
    scheme, _, token = given.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _insufficient(caller: Caller, scopes: tuple[str, ...], agent: str | None) -> AccessDenied:
    wanted = [*scopes, *([agent] if agent else [])]
    needed = f"this call needs the scope {' or '.join(wanted)}"
    if caller.token is None:
        return Unauthenticated(
            f"{needed}; callers from that address without a token have {caller.scopes}"
        )
    return Forbidden(f"{needed}; the token {caller.token} has {caller.scopes}", scope=wanted[0])


def _check_page(request: Request, rule: Rule) -> None:
    """Refuse what a page of another site has a browser send (Fetch Metadata Request Headers, W3C).

    Where a caller's place or cookie alone gives rights, every page that is open in a browser at that place could use
    them. Answers to reading calls are kept from such pages by the browser itself. A browser that does not trust the
    connection says only from where a page came (Origin, RFC 6454 7).
    """
    if request.method in {"GET", "HEAD"} and rule is not CLAIM:
        return
    site, origin = header(request, b"sec-fetch-site"), header(request, b"origin")
    if site is None and origin is not None:
        site = "same-origin" if origin.partition("://")[2] == header(request, b"host") else origin
    if site is not None and site not in _SAME_SITE:
        raise Forbidden(
            "pages of other sites may not call this service (a proxy in between must pass the Host header on)",
            code="cross-site",
        )


def _denied(_request: Request, error: Exception) -> Response:
    denied = cast("AccessDenied", error)
    if isinstance(denied, Forbidden):
        scope = f', error="insufficient_scope", scope="{denied.scope}"' if denied.scope else ""
        headers = {"WWW-Authenticate": REALM + scope} if scope else None
        return problem(403, denied.code, str(denied), headers=headers)
    invalid = "" if denied.code == Unauthenticated.code else ', error="invalid_token"'
    return problem(401, denied.code, str(denied), headers={"WWW-Authenticate": REALM + invalid})
