"""The page's files, read once; and the headers that keep a browser to them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

# Nothing but our own files, and no text ever taken for markup or script (https://www.w3.org/TR/CSP3/).
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file of the page."""

    content_type: str
    data: bytes


def _read(name: str) -> StaticFile:
    data = (files(__package__) / "static" / name).read_bytes()
    return StaticFile(_TYPES[name.rpartition(".")[2]], data)


_LOOKS = {"/page.css": _read("page.css"), "/icon.svg": _read("icon.svg")}
_SCRIPTS = ("page.js", "link.js", "pictures.js", "rejects.js", "what_if.js", "chart.js", "format.js")
PAGE_FILES = _LOOKS | {"/": _read("page.html")} | {f"/{name}": _read(name) for name in _SCRIPTS}
LOGIN_FILES = _LOOKS | {"/": _read("login.html"), "/login.js": _read("login.js"), "welcome": _read("welcome.html")}

# An open page loads itself anew when this changes, as after an update of the line.
PAGE_VERSION = hashlib.sha256(b"".join(file.data for file in PAGE_FILES.values())).hexdigest()[:12]
