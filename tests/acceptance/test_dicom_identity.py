"""User identity negotiation with pynetdicom as the receiver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from clara_results.agents.dicom.association import AssociationSettings
from clara_results.agents.dicom.echo import echo_destination
from clara_results.agents.secrets import Secrets
from clara_results.domain.receivers import AuthKind
from clara_results.wire.destinations import Auth, Destination

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Seen = list[tuple[int, bytes, bytes]]


@pytest.fixture
def receiver() -> Iterator[tuple[int, Seen]]:
    """Run a receiver that takes the user ``ward`` with the right passcode or token only; give its port and who came."""
    seen: Seen = []

    def decide(event: Any) -> tuple[bool, bytes | None]:
        seen.append((event.user_id_type, event.primary_field, event.secondary_field or b""))
        return seen[-1] in {(2, b"ward", b"geheim"), (5, b"a.b.c", b"")}, None

    entity = AE()
    entity.add_supported_context(Verification)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_USER_ID, decide)]
    )
    assert server is not None
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("auth", "secret", "expected", "taken"),
    [
        (Auth(kind=AuthKind.BASIC, user_name="ward", secret="pacs"), "geheim", (2, b"ward", b"geheim"), True),
        (Auth(kind=AuthKind.BASIC, user_name="ward", secret="pacs"), "wrong", (2, b"ward", b"wrong"), False),
        (Auth(kind=AuthKind.BASIC, user_name="ward"), "", (1, b"ward", b""), False),
        (Auth(kind=AuthKind.BEARER, secret="pacs"), "a.b.c", (5, b"a.b.c", b""), True),
    ],
)  # fmt: skip
def test_who_we_say_we_are(
    receiver: tuple[int, Seen],
    tmp_path: Path,
    auth: Auth,
    secret: str,
    expected: tuple[int, bytes, bytes],
    taken: bool,
) -> None:
    (tmp_path / "pacs").write_text(secret)
    port, seen = receiver
    destination = Destination(name="Pacs", ae_title="PACS", host="127.0.0.1", port=port, auth=auth)
    result = echo_destination(destination, Secrets(tmp_path), settings=AssociationSettings())
    assert seen[0] == expected
    steps = {step.name: step for step in result.steps}
    assert steps["association"].ok is taken
    if not taken:
        assert "may not take the user that we say we are" in steps["association"].message
