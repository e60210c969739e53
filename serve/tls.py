"""Certificate and key of the public port."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError


@dataclass(frozen=True)
class Certificate:
    """PEM files: the certificate, with the authorities between if there are any, and its key."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Makes sure that the two can be read and belong together.

        Raises:
            UserError: naming the files and the way out.
        """
        for path in (self.certificate, self.key):
            try:
                path.read_bytes()
            except OSError as error:
                raise UserError(f"{path} can't be read: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # An empty password: nobody is asked for one while a server starts.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise UserError(
                f"--tls-cert {self.certificate} and --tls-key {self.key} are no pair of PEM "
                f"certificate and unencrypted key ({reason.lower().replace('_', ' ')}); "
                "`openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem "
                "-subj /CN=localhost` makes one for tests"
            ) from None
