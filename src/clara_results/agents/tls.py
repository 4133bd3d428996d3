"""How connections to destinations are secured: TLS by BCP 195 (RFC 9325), which PS3.15 B.12 makes DICOM's."""

import ssl

from clara_results.agents.secrets import CODE, Secrets
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Tls

SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
)
"""RFC 9325 4.2, for TLS 1.2; those of TLS 1.3 are all recommended."""

# OpenSSL's verification results (X509_V_ERR_…), in words that say what to do.
_VERIFICATION = {
    9: "the receiver's certificate is not valid yet: look at both clocks",
    10: "the receiver's certificate has expired",
    18: "the receiver's certificate is signed by itself: trust it by tls.ca, if it is the right one",
    19: "the receiver's certificate comes from an authority that is not trusted: name it by tls.ca",
    20: "the receiver's certificate comes from an authority that is not trusted: name it by tls.ca",
    23: "the receiver's certificate is revoked",
    62: "the receiver's certificate is not for this host name: call it by the name in the certificate, or set tls.checkHost to false",
    64: "the receiver's certificate is not for this address: call it by the name in the certificate, or set tls.checkHost to false",
}
# Parts of OpenSSL's reasons, most telling first.
_REASONS = {
    "CERTIFICATE_REQUIRED": "the receiver wants a certificate of ours: name one by tls.certificate",
    "ALERT_UNKNOWN_CA": "the receiver does not trust the authority of our certificate",
    "ALERT_CERTIFICATE_EXPIRED": "the receiver says that our certificate has expired",
    "ALERT_CERTIFICATE_REVOKED": "the receiver says that our certificate is revoked",
    "ALERT_CERTIFICATE_UNKNOWN": "the receiver does not take our certificate",
    "ALERT_BAD_CERTIFICATE": "the receiver does not take our certificate",
    "ALERT_UNSUPPORTED_CERTIFICATE": "the receiver does not take certificates of this kind",
    "ALERT_ACCESS_DENIED": "the receiver takes our certificate, and lets us in all the same not",
    "ALERT_HANDSHAKE_FAILURE": "the receiver refuses: it wants a certificate of ours, or takes none of TLS 1.2's recommended cipher suites",
    "PROTOCOL_VERSION": "the receiver has no TLS 1.2 or later",
    "UNSUPPORTED_PROTOCOL": "the receiver has no TLS 1.2 or later",
    "WRONG_VERSION_NUMBER": "the receiver does not speak TLS on this port",
    "HTTP_REQUEST": "the receiver does not speak TLS on this port",
    "RECORD_LAYER_FAILURE": "the receiver does not speak TLS on this port",
    "UNEXPECTED_MESSAGE": "the receiver does not speak TLS as it must",
}


def tls_context(tls: Tls, secrets: Secrets) -> ssl.SSLContext:
    """Return what secures connections to a destination.

    Raises:
        DestinationUnavailable: A secret is not there, or is not what it must be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(SUITES)
    context.check_hostname = tls.check_host
    if tls.ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, tls.ca, secrets)
    if tls.certificate is not None:
        _load_certificate(context, tls.certificate, tls.key, secrets)
    return context


def server_tls_context(
    certificate: str, key: str | None, ca: str | None, secrets: Secrets
) -> ssl.SSLContext:
    """Return what secures connections that receivers open to us.

    Args:
        certificate: Name of the secret that holds our certificate (PEM).
        key: Name of its key; None: the key is with the certificate.
        ca: Name of the certificates of the authorities that receivers' own must come from; None: they need none.
        secrets: Where they lie.

    Raises:
        DestinationUnavailable: A secret is not there, or is not what it must be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(SUITES)
    _load_certificate(context, certificate, key, secrets)
    if ca is not None:
        _load_authorities(context, ca, secrets)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_authorities(context: ssl.SSLContext, name: str, secrets: Secrets) -> None:
    path = secrets.path(name)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as cause:
        raise DestinationUnavailable(
            f"the secret {name!r} can't be used: it must hold certificates (PEM)", code=CODE
        ) from cause
    except OSError as cause:
        raise secrets.unreadable(name, cause) from cause
    context.verify_flags |= (
        ssl.VERIFY_X509_PARTIAL_CHAIN
    )  # a receiver's very own certificate will do


def _load_certificate(
    context: ssl.SSLContext, name: str, key: str | None, secrets: Secrets
) -> None:
    path, key_path = secrets.path(name), secrets.path(key or name)
    try:
        context.load_cert_chain(path, key_path, password=lambda: b"")  # else it asks the terminal
    except ssl.SSLError as cause:
        where = repr(name) if key is None else f"{name!r} or {key!r}"
        if cause.reason == "KEY_VALUES_MISMATCH":
            why = "the key is not the certificate's"
        else:
            why = "a certificate and its key are needed, each PEM, the key without a passphrase"
        raise DestinationUnavailable(
            f"the secret {where} can't be used: {why}", code=CODE
        ) from cause
    except OSError as cause:
        raise secrets.unreadable(key or name, cause) from cause


def refusal(cause: ssl.SSLError) -> str:
    """Return in words why a secured connection did not come about, or broke."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = _VERIFICATION.get(cause.verify_code)
        return why or f"the receiver's certificate is not trusted: {cause.verify_message}"
    reason = cause.reason or ""
    for part, words in _REASONS.items():
        if part in reason:
            return words
    if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "the receiver closed the connection"
    return f"TLS failed: {reason.lower().replace('_', ' ') or 'no reason given'}"
