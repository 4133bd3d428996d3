"""Who we say we are to a DICOMweb service: HTTP authentication, and tokens by OAuth 2 client credentials."""

import base64
import json
import threading
from dataclasses import dataclass
from urllib.parse import quote_plus, urlencode

from clara_results.agents.dicomweb.connection import AnswerMissing, WebConnection, WebSettings
from clara_results.agents.secrets import Secrets
from clara_results.domain.clock import Clock
from clara_results.domain.receivers import AuthKind
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Auth, Destination

CODE = "not-authorized"
MARGIN = 60.0
"""Seconds before its expiry in which a token is replaced; a quarter of its life, if that is less."""
_OAUTH_ERRORS = frozenset(
    {
        "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client",
        "unsupported_grant_type", "invalid_scope",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    good_until: float | None


class Credentials:
    """What goes into requests' ``Authorization``. Thread-safe; kept while its destination stays as it is.

    Args:
        destination: Whose.
        secrets: Where passwords and tokens lie.
        settings: Time limits.
        clock: The time.
    """

    def __init__(
        self, destination: Destination, secrets: Secrets, settings: WebSettings, clock: Clock
    ) -> None:
        self._destination = destination
        self._secrets = secrets
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._token: _Token | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers that say who we are.

        Raises:
            DestinationUnavailable: The secret is not there, or no token is given for it.
        """
        auth = self._destination.auth
        if auth is None:
            return {}
        if auth.kind is AuthKind.BASIC:
            return {"Authorization": _basic(auth.user_name or "", self._secret(auth))}
        if auth.kind is AuthKind.BEARER:
            return {"Authorization": f"Bearer {self._secret(auth)}"}
        with self._lock:
            now = self._clock.monotonic()
            token = self._token
            if token is None or (token.good_until is not None and now >= token.good_until):
                token = self._token = self._ask(auth)
        return {"Authorization": f"Bearer {token.value}"}

    def refused(self, headers: dict[str, str]) -> bool:
        """Note that the service did not take these headers (401); tell whether others may do."""
        with self._lock:
            token = self._token
            if token is not None and headers.get("Authorization") == f"Bearer {token.value}":
                self._token = None
        return token is not None

    def _secret(self, auth: Auth) -> str:
        return self._secrets.text(auth.secret) if auth.secret is not None else ""

    def _ask(self, auth: Auth) -> _Token:
        """Ask for a token (RFC 6749 4.4.2), as the client that 2.3.1 makes of id and secret."""
        form = {"grant_type": "client_credentials"} | ({"scope": auth.scope} if auth.scope else {})
        body = urlencode(form).encode()
        user, secret = quote_plus(auth.client_id or ""), quote_plus(self._secret(auth))
        headers = {
            "Authorization": _basic(user, secret),
            "Content-Type": "application/x-www-form-urlencoded",
            "Content-Length": str(len(body)),
            "Accept": "application/json",
        }
        asked = self._clock.monotonic()
        connection = WebConnection(
            auth.token_url or "", self._destination.tls, self._secrets, self._settings, self._clock
        )
        try:
            answer = connection.exchange("POST", "", headers, [body])
        except AnswerMissing as cause:
            raise DestinationUnavailable(f"no token: {cause}", code=CODE) from cause
        finally:
            connection.close()
        return _token(answer.status, answer.data, asked, connection.place)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _token(status: int, data: bytes, asked: float, place: str) -> _Token:
    """Return the token in an answer (RFC 6749 5.1, 5.2)."""
    try:
        said = json.loads(data)
        value = said.get("access_token")
        error = said.get("error")
        seconds = float(said["expires_in"]) if "expires_in" in said else None
    except (ValueError, AttributeError, TypeError):
        value, error, seconds = None, None, None
    if status == 200 and isinstance(value, str) and value.isascii() and value.isprintable():
        good = None if seconds is None else asked + seconds - min(MARGIN, seconds / 4)
        return _Token(value, good)
    why = f" ({error})" if isinstance(error, str) and error in _OAUTH_ERRORS else ""
    what = "with no token" if status == 200 else "with a refusal"
    raise DestinationUnavailable(
        f"{place} answered the request for a token {what}: status {status}{why}; look at the destination's "
        "auth.tokenUrl, auth.clientId and auth.scope, and at its secret",
        code=CODE,
    )
