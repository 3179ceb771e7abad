"""`trunkline release deploy`: tells the servers of a project that run on this machine which release to serve.

Each is asked in turn over its own socket (see `local.py`) and says what came of it: it loads the bundle beside the old
one, checks it, and takes it over or stays with what it has. Reads and prints, decides nothing. Needs no extra.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from trunkline.bundle.release import Releases
from trunkline.console import print_json, root_of
from trunkline.errors import StoreError, TrunklineError
from trunkline.options import AsJson, Release
from trunkline.serving import local
from trunkline.serving.command import releases_of

_PATIENCE = 10.0  # seconds for a server to say what it serves
_LOADING = 1800.0  # and to load a bundle: more than any limit of its own


@dataclass(frozen=True)
class Told:
    """What a server made of it: `outcome` is "swapped", "unchanged", "refused" or "silent"; bundles by their id."""

    server: str
    outcome: str
    bundle: str | None
    before: str | None
    reason: str | None = None


def deploy(context: typer.Context, id: Release = None, as_json: AsJson = False) -> None:
    """Have this project's servers on this machine take over the live release, without a restart."""
    root = root_of(context)
    releases = releases_of(root)
    named = None if id is None else Path(releases.get(id).bundle).name
    try:
        found = local.servers(releases.home)
    except OSError as error:
        raise TrunklineError(f"the servers of this project cannot be found: {error}") from error
    if not found:
        raise TrunklineError(
            f"no server of this project runs on this machine for this user; one is started with: "
            f"trunkline -C {root} serve"
        )
    names = {Path(release.bundle).name: release.id for release in releases.list()}
    told = []
    for path in found:
        told.append(_tell(path, named))
        if not as_json:
            print(_said(told[-1], names), flush=True)
    if as_json:
        print_json([asdict(one) for one in told])
    failed = sum(one.outcome in ("refused", "silent") for one in told)
    if failed:
        raise TrunklineError(f"{failed} of {len(told)} servers did not take it over")


def hint(releases: Releases, root: Path) -> str | None:
    """What to tell who has just moved the live release, None where no server runs."""
    with contextlib.suppress(OSError, StoreError):
        if local.servers(releases.home):
            return f"running servers take it over with: trunkline -C {root} release deploy"
    return None


def _tell(path: Path, named: str | None) -> Told:
    """Ask a server to take over a bundle, or where it has no name the live release."""
    server, before = local.name_of(path), None
    try:
        status, serves = _ask(path, "GET", None, _PATIENCE)
        if status == 200:
            before = serves["bundle"]
            status, serves = _ask(path, "POST", {} if named is None else {"bundle": named}, _LOADING)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Told(server, "silent", None, before, str(error) or type(error).__name__)
    if status != 200:
        return Told(server, "refused", before, before, serves["error"]["message"])
    return Told(server, "unchanged" if serves["bundle"] == before else "swapped", serves["bundle"], before)


class _Connection(http.client.HTTPConnection):
    """A connection to a server on this machine, to send one request on."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = local.connect(self._path)
        self.sock.settimeout(self.timeout)


def _ask(path: Path, method: str, body: Mapping[str, str] | None, timeout: float) -> tuple[int, Any]:
    """The status and the JSON that come back."""
    content = None if body is None else json.dumps(body)
    with contextlib.closing(_Connection(path, timeout)) as connection:
        connection.request(method, "/admin/release", content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def _said(told: Told, names: Mapping[str, str]) -> str:
    def shown(bundle: str | None) -> str:
        return f"{names.get(bundle or '', 'no release')} (bundle {bundle})"

    match told.outcome:
        case "swapped":
            what = f"serves {shown(told.bundle)}, before {shown(told.before)}"
        case "unchanged":
            what = f"serves {shown(told.bundle)} already"
        case "refused" if told.before is not None:
            what = f"stays with {shown(told.before)}: {told.reason}"
        case "refused":
            what = f"refused: {told.reason}"
        case _:
            what = f"gave no answer: {told.reason}"
    return f"{told.server}  {what}"
