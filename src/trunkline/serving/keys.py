"""Who may ask for what: the optional key of the API, and the key without which there are no admin calls.

Open to all: liveness and readiness (native and of the Open Inference Protocol), which probes ask without secrets, and
the files of the playground, which hold none. Admin calls are `/admin/…` and loading and unloading over the Open
Inference Protocol. Keys are compared in constant time and never written anywhere.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trunkline.errors import UsageError
from trunkline.serving.errors import NotFound, Unauthorised
from trunkline.serving.http import NOTHING_HERE

PROBES = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
_SCHEME = b"bearer "


@dataclass(frozen=True)
class Keys:
    """The keys that callers must show as `Authorization: Bearer KEY`. Without an API key, everything but admin calls is
    open; without an admin key, there are no admin calls.
    """

    api: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise Unauthorised where the key needed is not shown, NotFound for an admin call where these are off."""
        if is_admin(path):
            if self.admin is None:
                raise NotFound(NOTHING_HERE)
            wanted = self.admin
        elif self.api is None or path in PROBES or path == "/" or path.startswith("/ui/"):
            return
        else:
            wanted = self.api
        given = headers.get(b"authorization", b"")
        if given[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthorised("a key is needed: send Authorization: Bearer KEY")
        if not hmac.compare_digest(given[len(_SCHEME) :].strip(), wanted.encode()):
            raise Unauthorised("the key is not the right one")


def is_admin(path: str) -> bool:
    """Whether a path changes what is served."""
    parts = path.strip("/").split("/")
    return parts[0] == "admin" or (parts[:2] == ["v2", "repository"] and parts[-1] in ("load", "unload"))


def read_key(name: str, file: Path | None, environment: Mapping[str, str]) -> str | None:
    """A key from a file, else from the environment variable `name`, else None. Raises UsageError for an empty one."""
    try:
        key = environment.get(name) if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key file {file} cannot be read: {error}") from None
    if key is None:
        return None
    key = key.strip()
    if not key or not key.isprintable():
        raise UsageError(f"the key in {name if file is None else file} must be one line of text that is not empty")
    return key
