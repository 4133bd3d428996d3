"""The console's pages of destinations: all of them, one, and what can be done with it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from clara_results.api.console.pages import PageRoute, form, go_to, is_part, render
from clara_results.api.dependencies import EngineDep
from clara_results.domain import names
from clara_results.domain.receivers import DICOM, DICOMWEB, KINDS, AuthKind, Commit, Verify
from clara_results.errors import Conflict, InvalidInput
from clara_results.service import destinations
from clara_results.service.engine import Engine
from clara_results.wire.codec import from_json
from clara_results.wire.destinations import Auth, Destination, DestinationView

router = APIRouter(include_in_schema=False, route_class=PageRoute)
ONE = "/destinations/{name}"
_TEXTS = {DICOM: ("aeTitle", "host", "callingAeTitle"), DICOMWEB: ("url",)}
_NUMBERS = {DICOM: ("port", "maxAssociations"), DICOMWEB: ("maxAssociations",)}
_TLS = ("ca", "certificate", "key")
_AUTH = {
    AuthKind.BASIC: ("userName", "secret"),
    AuthKind.BEARER: ("secret",),
    AuthKind.OAUTH2: ("tokenUrl", "clientId", "scope", "secret"),
}
"""What a form asks for, by what it depends on; the names are the wire's."""


@router.get("/destinations")
async def listing(request: Request, engine: EngineDep) -> Response:
    """Show all destinations and how they stand."""
    overview = await engine.overseer.overview()
    found = await engine.read(destinations.all_destinations)
    return await render(
        request,
        "destinations.html",
        destinations=found.items,
        rates=overview.rates,
        key=names.name_key,
        address=_address,
    )


@router.get("/destinations/new")
async def new(request: Request) -> Response:
    """Ask for a new destination."""
    return await _form_page(request, None, {"kind": DICOM, "maxAssociations": "2", **_SWITCHES}, {})


@router.post("/destinations")
async def add(request: Request, engine: EngineDep) -> Response:
    """Add a destination, or say what is wrong with it."""
    values = _first(await form(request))
    try:
        checked = destinations.checked(_read(values))
        added = await engine.write(lambda tx: destinations.add(tx, checked, engine.clock))
    except (InvalidInput, Conflict) as error:
        return await _form_page(request, None, values, _faults(error))
    return go_to(request, _address(added.name))


@router.get(ONE)
async def show(request: Request, engine: EngineDep, name: str) -> Response:
    """Show one destination: how it stands, and how it is set up."""
    return await _page(request, engine, name)


@router.get(ONE + "/edit")
async def edit(request: Request, engine: EngineDep, name: str) -> Response:
    """Ask what is to be changed of a destination."""
    found = await _find(engine, name)
    return await _form_page(request, found.name, _values(found), {})


@router.post(ONE)
async def replace(request: Request, engine: EngineDep, name: str) -> Response:
    """Change a destination, or say what is wrong with it."""
    values = _first(await form(request))
    try:
        checked = destinations.checked(_read(values))
        changed = await engine.write(
            lambda tx: destinations.replace(tx, name, checked, engine.clock)
        )
    except (InvalidInput, Conflict) as error:
        return await _form_page(request, name, values, _faults(error))
    return go_to(request, _address(changed.name))


@router.post(ONE + "/test")
async def test(request: Request, engine: EngineDep, name: str) -> Response:
    """Connect to a destination, and show whether it answers and what it takes."""
    found = await _find(engine, name)
    result = await asyncio.to_thread(request.app.state.test_destination, found)
    return await render(request, "destination_test.html", result=result)


@router.post(ONE + "/pause")
async def pause(request: Request, engine: EngineDep, name: str) -> Response:
    """Let no more tasks for a destination be claimed."""
    await engine.write(lambda tx: destinations.pause(tx, name, engine.clock))
    return await _again(request, engine, name)


@router.post(ONE + "/resume")
async def resume(request: Request, engine: EngineDep, name: str) -> Response:
    """Let tasks for a destination be claimed again."""
    await engine.write(lambda tx: destinations.resume(tx, name))
    return await _again(request, engine, name)


@router.post(ONE + "/delete")
async def remove(request: Request, engine: EngineDep, name: str) -> Response:
    """Remove a destination."""
    await engine.write(lambda tx: destinations.remove(tx, name))
    return go_to(request, "/destinations")


async def _find(engine: Engine, name: str) -> DestinationView:
    return await engine.read(lambda connection: destinations.find(connection, name))


async def _again(request: Request, engine: Engine, name: str) -> Response:
    """Return a destination's page after something was done: as a part, or by sending the browser there."""
    if is_part(request):
        return await _page(request, engine, name)
    return go_to(request, _address(name))


async def _page(request: Request, engine: Engine, name: str) -> Response:
    found = await _find(engine, name)
    overview = await engine.overseer.overview()
    key = names.name_key(found.name)
    return await render(
        request,
        "destination.html",
        destination=found,
        rate=overview.rates.get(key),
        causes=[cause for cause in overview.causes if cause.key == key],
        place=_address(found.name),
    )


async def _form_page(
    request: Request, name: str | None, values: Mapping[str, str], faults: Mapping[str, str]
) -> Response:
    return await render(
        request,
        "destination_form.html",
        422 if faults else 200,
        name=name,
        place=_address(name) if name else "/destinations",
        values=values,
        faults=faults,
        kinds=KINDS,
        verify=list(Verify),
        commit=list(Commit),
        auth_kinds=list(AuthKind),
    )


def _address(name: str) -> str:
    """Return where a destination's page is. Names compare without case, so none is taken for the form's address."""
    return f"/destinations/{quote('NEW' if name == 'new' else name, safe='')}"


# A form's values, and the destination that they are


_SWITCHES = {"transcode": "on", "checkHost": "on"}
"""Check boxes that are set at first."""


def _first(given: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {name: values[0].strip() for name, values in given.items()}


def _read(values: Mapping[str, str]) -> Destination:
    """Return the destination that a form describes; what belongs to another kind is left out.

    Raises:
        InvalidInput: A value is none that the form offers.
    """
    kind = values.get("kind", "")
    body: dict[str, Any] = {
        "name": values.get("name", ""),
        "kind": kind,
        "transcode": "transcode" in values,
        "overwrite": "overwrite" in values,
        "verify": values.get("verify") or Verify.OFF.value,
        "commitment": (kind == DICOM and values.get("commitment")) or Commit.OFF.value,
        "statuses": _statuses(values.get("statuses", "")),
    }
    body |= {name: values.get(name) or None for name in _TEXTS.get(kind, ())}
    body |= {name: _number(values.get(name, "")) for name in _NUMBERS.get(kind, ())}
    if "tls" in values:
        body["tls"] = {name: values.get(name) or None for name in _TLS}
        body["tls"]["checkHost"] = "checkHost" in values
    if values.get("auth") in set(AuthKind):
        way = AuthKind(values["auth"])
        body["auth"] = {"kind": way.value}
        body["auth"] |= {name: values.get(f"auth.{name}") or None for name in _AUTH[way]}
    if body.get("maxAssociations") is None:
        body["maxAssociations"] = 0
    try:
        return from_json(Destination, body)
    except (TypeError, ValueError):
        raise InvalidInput("the form has a value that none of its fields offers") from None


def _values(found: Destination) -> dict[str, str]:
    """Return a form's values that describe a destination."""
    values = {
        "name": found.name, "kind": found.kind, "aeTitle": found.ae_title, "host": found.host, "port": found.port,
        "callingAeTitle": found.calling_ae_title, "url": found.url, "maxAssociations": found.max_associations,
        "verify": found.verify.value, "commitment": found.commitment.value,
        "statuses": "\n".join(f"{status} {meaning}" for status, meaning in (found.statuses or {}).items()),
        "transcode": "on" if found.transcode else None, "overwrite": "on" if found.overwrite else None,
    }  # fmt: skip
    tls = found.tls
    values["checkHost"] = None if tls is not None and not tls.check_host else "on"
    if tls is not None:
        values |= {"tls": "on", "ca": tls.ca, "certificate": tls.certificate, "key": tls.key}
    values |= _auth_values(found.auth)
    return {name: str(value) for name, value in values.items() if value is not None}


def _auth_values(auth: Auth | None) -> dict[str, str | int | None]:
    if auth is None:
        return {}
    return {
        "auth": auth.kind.value, "auth.userName": auth.user_name, "auth.secret": auth.secret,
        "auth.tokenUrl": auth.token_url, "auth.clientId": auth.client_id, "auth.scope": auth.scope,
    }  # fmt: skip


def _number(text: str) -> int | None:
    """Return a number; one that is none, or that no field can take, as one that is out of every range."""
    if not text:
        return None
    return int(text) if text.isdecimal() and len(text) < 10 else -1


def _statuses(text: str) -> dict[str, str] | None:
    """Return what a receiver's statuses mean, of lines such as ``C000 retry``."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        status, _, meaning = line.replace("=", " ").replace(":", " ").strip().partition(" ")
        if status:
            found[status] = meaning.strip()
    return found or None


def _faults(error: InvalidInput | Conflict) -> dict[str, str]:
    """Return what is wrong, by the form's field; of the whole, by an empty name."""
    if error.errors:
        return {fault.field.removeprefix("tls."): fault.message for fault in error.errors}
    return {"name" if isinstance(error, Conflict) else "": str(error)}
