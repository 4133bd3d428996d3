"""Associations for the services other than C-STORE: queries, retrieval, storage commitment. pynetdicom's, as none is in a hurry."""

from collections.abc import Sequence
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation, UserIdentityNegotiation
from pynetdicom.presentation import PresentationContext

from clara_results.agents.dicom.association import AssociationSettings, Peer
from clara_results.agents.dicom.part10 import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
)
from clara_results.errors import DestinationUnavailable

Handlers = Sequence[tuple[Any, ...]]
"""pynetdicom's: events, what is called for each, and arguments of that."""


class NothingAccepted(DestinationUnavailable):
    """A peer that offers none of the services that are wanted of it."""

    code = "service-not-offered"


def application_entity(title: str, settings: AssociationSettings) -> AE:
    """Return ourselves as pynetdicom wants to know us."""
    entity = AE(title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_pdu_size = settings.max_pdu
    entity.connection_timeout = settings.connect
    entity.acse_timeout = settings.association
    entity.dimse_timeout = settings.dimse
    entity.network_timeout = settings.dimse
    return entity


def associate(
    peer: Peer,
    settings: AssociationSettings,
    contexts: list[PresentationContext],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Handlers = (),
) -> Association:
    """Open an association for other services than C-STORE.

    Args:
        peer: With whom, how secured, as whom.
        settings: How long to wait.
        contexts: What is to be done over it.
        roles: Where ours are other than the usual (PS3.7 D.3.3.4).
        handlers: What is done about that which the peer asks for.

    Raises:
        NothingAccepted: It accepts none of the contexts.
        DestinationUnavailable: It can't be reached, or accepts no association.
    """
    extended: list[Any] = list(roles)
    if peer.identity is not None:
        identity = UserIdentityNegotiation()
        identity.user_identity_type = peer.identity.kind
        identity.primary_field = peer.identity.primary
        identity.secondary_field = peer.identity.passcode
        extended.append(identity)
    try:
        association = application_entity(peer.calling, settings).associate(
            peer.host,
            peer.port,
            contexts,
            ae_title=peer.called,
            max_pdu=settings.max_pdu,
            ext_neg=extended,
            tls_args=(peer.tls, peer.host) if peer.tls is not None else None,
            evt_handlers=list(handlers),
        )
    except (OSError, RuntimeError) as cause:  # a name that can't be resolved, TLS that can't begin
        raise DestinationUnavailable(f"can't connect to {peer}") from cause
    if association.is_established:
        return association
    if association.rejected_contexts:  # pynetdicom ends an association with nothing in it
        raise NothingAccepted(f"{peer} offers nothing of what is wanted of it")
    if association.is_rejected:
        raise DestinationUnavailable(f"{peer} rejected the association of {peer.calling}")
    raise DestinationUnavailable(f"no association with {peer}: it can't be reached, or aborted")
