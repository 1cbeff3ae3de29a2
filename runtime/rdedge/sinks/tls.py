"""TLS towards brokers and servers: verified always, by the system's authorities or by a file of one's own."""

from __future__ import annotations

import ssl
from pathlib import Path

from rdedge.errors import UsageError


def client_context(
    *, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """``ca_file``: trust these authorities only; ``cert_file`` with ``key_file``: who we are. Raises UsageError."""
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except OSError as exc:  # a missing file, or SSLError for what is no certificate
        files = ", ".join(str(path) for path in (ca_file, cert_file, key_file) if path is not None)
        raise UsageError(f"TLS files {files}: {exc}", remedy="name PEM files of certificates and their key") from exc
    return context
