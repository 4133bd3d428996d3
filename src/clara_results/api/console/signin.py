"""Signing in: a person shows a token once, and the browser keeps it in a cookie that no script can read (RFC 6265)."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from clara_results.api.access import COOKIE, caller_of, secured
from clara_results.api.console.pages import PageRoute, form, local, render
from clara_results.api.dependencies import EngineDep
from clara_results.errors import AccessDenied, Unauthenticated

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_WHY = {
    "token-expired": "The token has expired. Sign in with another one.",
    "token-invalid": "The token is not valid any more. Sign in with another one.",
}


@router.get("/login")
async def login(
    request: Request,
    place: Annotated[str | None, Query(alias="next", max_length=2000)] = None,
    why: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """Ask for a token; who needs none goes on at once."""
    if why is None:
        try:
            if (await caller_of(request)).scopes.allow("read"):
                return RedirectResponse(local(place), 303)
        except AccessDenied:
            pass  # that is why one signs in
    return await render(request, "login.html", place=local(place), error=_WHY.get(why or ""))


@router.post("/login")
async def sign_in(request: Request, engine: EngineDep) -> Response:
    """Take a token and keep it in the browser, if it allows to look."""
    values = await form(request)
    token = values.get("token", [""])[0].strip()
    place = local(values.get("next", [""])[0])
    address = request.client.host if request.client else None
    try:
        if not token:
            raise Unauthenticated("give a token")
        caller = await engine.access.caller(token, address)
    except AccessDenied as error:
        return await render(request, "login.html", 401, place=place, error=str(error))
    if not caller.scopes.allow("read"):
        return await render(
            request, "login.html", 403, place=place,
            error="that token does not allow to look at tasks: the console needs one with the scope read, operate or "
            "admin",
        )  # fmt: skip
    answer = RedirectResponse(place, 303)
    answer.set_cookie(
        COOKIE, token, httponly=True, samesite="strict", secure=secured(request), path="/"
    )
    return answer


@router.post("/logout")
async def sign_out(_request: Request) -> Response:
    """Have the browser forget the token."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, path="/")
    return answer
