"""`trunkline bench`: arguments made into what is measured, and what was measured into tables, JSON and a picture.

Imports no engine until it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from trunkline.atomic import write_json
from trunkline.bench import plot as picture
from trunkline.bench.load import Load
from trunkline.bench.show import print_costs, print_loads
from trunkline.bundle.release import Releases
from trunkline.console import print_json, root_of
from trunkline.errors import UsageError
from trunkline.machine import machine
from trunkline.options import AsJson, Device, Dtype, Engine, Folder, Keep, OnlyTasks, Speed, dial_of
from trunkline.serving.keys import read_key

if TYPE_CHECKING:
    from trunkline.project.speed import DialValue

_STORE = ".trunkline"
_BATCHES, _TOKENS, _CLIENTS = (1, 8, 32), 32, (1, 8, 32)

Numbers = list[int] | None


def bench(
    context: typer.Context,
    bundle: Folder = None,
    url: Annotated[
        str | None, typer.Option(help="Measure this running server instead: http://host:port.", show_default=False)
    ] = None,
    task: OnlyTasks = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="jsonl, csv, tsv or parquet with your own text (and text_pair); made-up texts else.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        Numbers,
        typer.Option(min=4, help="Length of made-up texts (repeatable for a bundle).", show_default=str(_TOKENS)),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each batch and length, or for each load.")] = 5.0,
    batch: Annotated[
        Numbers,
        typer.Option(min=1, max=4096, help="Texts at a time (repeatable).", show_default="1, 8 and 32"),
    ] = None,
    engine: Engine = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    speed: Speed = None,
    keep: Keep = None,
    clients: Annotated[
        Numbers,
        typer.Option(
            min=1,
            help="With --url, closed loop: clients that each wait for their answer (repeatable).",
            show_default="1, 8 and 32",
        ),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01,
            help="With --url, open loop: requests a second, at random instants (repeatable).",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="With --url: texts in a request.")] = 1,
    warmup: Annotated[float, typer.Option(min=0.0, help="With --url: seconds of each load before it counts.")] = 2.0,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="With --url: seconds after which a request has failed.")
    ] = 30.0,
    connections: Annotated[int, typer.Option(min=1, help="With --url, open loop: most connections.")] = 256,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="With --url: file with its key; else TRUNKLINE_API_KEY.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the result into this .svg or .png.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this file.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Time all tasks of a bundle in one pass against separate models, or put load on a running server.

    Tasks of a bundle are added in the order of their names, or of --task. --speed and --keep need --texts.
    """
    if plot is not None:
        picture.check(plot)
    dial = dial_of(speed, keep)
    if dial and texts is None:
        raise UsageError("--speed and --keep need your own --texts: how soon made-up texts leave says nothing")
    if texts is not None and tokens:
        raise UsageError("give --texts or --tokens, not both: texts of a file are as long as they are")
    if url is None:
        _refuse("with --url", clients=clients, rate=rate, api_key_file=api_key_file)
        path = _folder(context, bundle)
        found = _costs(path, task, texts, batch or _BATCHES, tokens, seconds, engine, dtype, device, dial)
    else:
        _refuse("without --url", BUNDLE=bundle, batch=batch)
        loads = [
            Load(count, each, rows, seconds, warmup, timeout, connections)
            for count, each in [
                *((count, None) for count in (clients or (() if rate else _CLIENTS))),
                *((None, each) for each in rate or ()),
            ]
        ]
        found = _loads(url, read_key("TRUNKLINE_API_KEY", api_key_file, os.environ), task, texts, tokens, loads, dial)
    if out is not None:
        write_json(out, found)
    if plot is not None:
        picture.loads(found["loads"], plot) if url else picture.costs(found["rows"], plot)
    if as_json:
        return print_json(found)
    return (print_loads if url else print_costs)(found, Console(highlight=False))


def _refuse(place: str, **options: object) -> None:
    """An option that would be left unread is an error."""
    for name, value in options.items():
        if value:
            shown = name if name.isupper() else f"--{name.replace('_', '-')}"
            raise UsageError(f"{shown} has a meaning only {place}")


def _folder(context: typer.Context, bundle: Path | None) -> Path:
    """The folder of a bundle that is named, or live in the project."""
    if bundle is not None:
        return bundle
    root = root_of(context)
    if not (root / "project.toml").is_file():
        raise UsageError(f"{root.resolve()} is no project: name a bundle to measure, or the project's folder with -C")
    releases = Releases(root / _STORE)
    live = releases.live()
    if live is None:
        raise UsageError(f"{root.resolve()} has no release yet: trunkline run")
    return releases.folder(live)


def _costs(
    folder: Path,
    tasks: Sequence[str] | None,
    texts: Path | None,
    batches: Sequence[int],
    lengths: Sequence[int] | None,
    seconds: float,
    engine: str,
    dtype: str,
    device: str,
    dial: Mapping[str, DialValue],
) -> dict[str, Any]:
    from trunkline.bench.cost import Asked, longest, measure
    from trunkline.bench.texts import read_texts
    from trunkline.bundle.loaded import Bundle
    from trunkline.engine.base import speeds_of
    from trunkline.project.speed import dials

    read = () if texts is None else tuple(read_texts(texts))
    bundle = Bundle.load(folder, engine=engine, dtype=dtype, device=device, tasks=tasks)
    names = bundle.tasks if tasks is None else tuple(dict.fromkeys(tasks))
    most = longest(bundle, names)
    if lengths and max(lengths) > most:
        raise UsageError(f"--tokens {max(lengths)}: the tasks read at most {most} tokens")
    speeds = speeds_of(bundle.specs, dials(names, **dial))
    if dial and not any(bundle.specs[name].exits for name in names):
        raise UsageError("none of these tasks has exits, where texts could leave")
    asked = Asked(names, tuple(batches), tuple(lengths or (min(_TOKENS, most),)), read, seconds, speeds)
    rows = []
    with _progress() as progress:
        doing = progress.add_task(f"{len(names)} tasks", total=len(asked.cells()))
        for cell in measure(bundle, asked):
            rows += cell
            progress.advance(doing)
    return {
        "command": _command(),
        "machine": machine(),
        "bundle": bundle.id,
        "engine": str(bundle.loader.choice),
        "tasks": list(names),
        **dial,
        "rows": rows,
    }


def _loads(
    url: str,
    key: str | None,
    tasks: Sequence[str] | None,
    texts: Path | None,
    lengths: Sequence[int] | None,
    loads: Sequence[Load],
    dial: Mapping[str, DialValue],
) -> dict[str, Any]:
    from trunkline.bench import server
    from trunkline.bench.texts import read_texts

    if lengths and len(lengths) > 1:
        raise UsageError("one --tokens at a time for a server; to mix lengths, give --texts")
    serving = server.reach(url, key, tasks)
    length = lengths[0] if lengths else _TOKENS
    sent = server.texts_for(serving, length, loads[0].rows) if texts is None else read_texts(texts)
    results = []
    with _progress() as progress:
        doing = progress.add_task(serving.url, total=len(loads))
        for result in server.run(serving, sent, loads, dial):
            results.append(result)
            progress.advance(doing)
    about = {name: value for name, value in serving.model.items() if name != "tasks"}
    return {
        "command": _command(),
        "machine": machine(),  # of the load generator
        "url": serving.url,
        "server": about,
        "tasks": list(serving.tasks),
        **dial,
        "loads": results,
    }


def _progress() -> Progress:
    """How far it is, and the time left, where somebody watches."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _command() -> str:
    return " ".join(["trunkline", *sys.argv[1:]])
