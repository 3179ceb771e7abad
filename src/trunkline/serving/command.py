"""`trunkline serve`: arguments, keys and limits made into what `run.py` takes. Imports no server until it is called."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from trunkline.bundle.manifest import read_manifest
from trunkline.bundle.release import BUNDLES, Releases
from trunkline.console import root_of
from trunkline.errors import MissingExtra, UsageError, unknown
from trunkline.options import Device, Dtype, Engine, Folder
from trunkline.serving.limits import Limits

_STORE = ".trunkline"
_LEVELS = ("debug", "info", "warning", "error")


def serve(
    context: typer.Context,
    bundle: Folder = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")] = 8000,
    engine: Engine = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help=f"A limit other than its default (repeatable): {', '.join(Limits.model_fields)}.",
            show_default=False,
        ),
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="KEEP",
            help="Let load raise the speed of tasks with exits as far as this fraction of their quality is kept.",
            show_default=False,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the key for all calls but probes; else TRUNKLINE_API_KEY.", show_default=False),
    ] = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the key for admin calls; else TRUNKLINE_ADMIN_KEY.", show_default=False),
    ] = None,
    log_level: Annotated[str, typer.Option(help=f"One of {', '.join(_LEVELS)}.")] = "info",
) -> None:
    """Serve a bundle over HTTP until SIGTERM or Ctrl-C."""
    try:
        from trunkline.serving.app import Settings
        from trunkline.serving.keys import Keys, read_key
        from trunkline.serving.loading import Loading
        from trunkline.serving.run import Options
        from trunkline.serving.run import serve as run
    except ImportError as error:
        if (error.name or "").startswith("trunkline"):
            raise
        raise MissingExtra("serve", "trunkline serve") from None
    if log_level not in _LEVELS:
        raise UsageError(unknown("log level", log_level, _LEVELS))
    root = root_of(context)
    releases = releases_of(root) if bundle is None else None
    keys = Keys(
        api=read_key("TRUNKLINE_API_KEY", api_key_file, os.environ),
        admin=read_key("TRUNKLINE_ADMIN_KEY", admin_key_file, os.environ),
    )
    folder = bundle.resolve().parent if bundle is not None else root / _STORE / BUNDLES
    options = Options(
        host=host,
        port=port,
        settings=Settings(keys=keys, bundles=folder),
        releases=releases,
        loading=Loading(engine=engine, dtype=dtype, device=device),
        limits=limits_of([*(limit or ()), *([] if floor is None else [f"floor={floor}"])]),
        log_level=log_level,
    )
    if bundle is not None:
        read_manifest(bundle)  # what is no bundle at all is said before anything starts
    run(bundle, options, os.environ)


def limits_of(given: Iterable[str]) -> Limits:
    """Limits from "name=number" each. Raises UsageError for a name that does not exist or a number that cannot be."""
    values: dict[str, str] = {}
    for item in given:
        name, _, number = item.partition("=")
        if name not in Limits.model_fields:
            raise UsageError(unknown("limit", name, Limits.model_fields))
        if not number:
            raise UsageError(f"--limit {item}: write NAME=NUMBER")
        values[name] = number
    try:
        return Limits.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--limit {first['loc'][0]}={first['input']}: {first['msg']}") from None


def releases_of(root: Path) -> Releases:
    """The releases of the project in a folder. Raises UsageError where there is none."""
    if not (root / "project.toml").is_file():
        raise UsageError(f"{root.resolve()} is no project: name a bundle to serve, or the project's folder with -C")
    return Releases(root / _STORE)
