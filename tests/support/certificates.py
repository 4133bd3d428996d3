"""Certificates for tests: an authority, and what it signs."""

import ssl
import subprocess
from pathlib import Path

EC = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
RSA = ("rsa:2048",)


class Authority:
    """A certificate authority of the test's own.

    Args:
        openssl: The program.
        folder: Where all that it makes is put.
        name: Its common name.
        key: What kind of keys it makes: EC or RSA, which older receivers want.

    Attributes:
        certificate: Its certificate's file (PEM).
    """

    def __init__(
        self,
        openssl: str,
        folder: Path,
        name: str = "Test Authority",
        key: tuple[str, ...] = EC,
    ) -> None:
        self._openssl = openssl
        self._folder = folder
        self._new_key = ("-nodes", "-newkey", *key)
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        self._run(
            "req", "-x509", *self._new_key, "-days", "2", "-subj", f"/CN={name}",
            "-keyout", str(self._key), "-out", str(self.certificate),
        )  # fmt: skip

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._openssl, *arguments], check=True, capture_output=True)

    def issue(
        self,
        name: str,
        alternatives: str = "DNS:localhost,IP:127.0.0.1",
        days: int = 1,
    ) -> tuple[Path, Path]:
        """Sign a certificate and return its file and that of its key (PEM).

        Args:
            name: Its common name, and its files'.
            alternatives: Its subject alternative names, as openssl writes them.
            days: For how long it is valid from now on; negative: it has expired.
        """
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternatives}\n")
        self._run(
            "req", "-new", *self._new_key, "-subj", f"/CN={name}",
            "-keyout", str(key), "-out", str(request),
        )  # fmt: skip
        self._run(
            "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key),
            "-CAcreateserial", "-days", str(days), "-extfile", str(extensions), "-out", str(certificate),
        )  # fmt: skip
        return certificate, key

    def server(
        self, name: str = "server", *, mutual: bool = False, **how: object
    ) -> ssl.SSLContext:
        """Return a server's context with a certificate that is issued now.

        Args:
            name: The certificate's.
            mutual: It wants a certificate of this authority from its clients.
            **how: As for ``issue``.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(name, **how))  # type: ignore[arg-type]
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.certificate)
        return context
