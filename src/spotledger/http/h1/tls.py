"""The certificate of a listener, which can be replaced while connections are open."""

from __future__ import annotations

import ssl
from pathlib import Path


class Certificate:
    """
    A certificate and its key, in PEM files; the chain follows the certificate.

    A connection keeps the certificate that it began with. TLS 1.2 is the lowest version.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Load the files; raises what :meth:`load` does."""
        self._certificate = certificate
        self._key = key
        self.load()

    def load(self) -> None:
        """
        Load the files again, for new connections. After an error the previous certificate stays.

        Raises:
            OSError: A file cannot be read (ssl.SSLError: or used), or they do not belong together.
        """
        # Always a new context: one that had a certificate of another kind of key would go on to offer it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # Without the password, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(self._certificate, self._key, password=b"")
        self.context = context
