"""Writing a project's files: a new project, a task more, a task less.

A new project is there completely or not at all. What a column of a table can be learned as is decided in `inference`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trunkline.atomic import publish_folder, scratch_folder, sync_folder, write_text
from trunkline.errors import Problem, ProjectError, UsageError, unknown
from trunkline.project.config import TASK_NAME, ProjectSettings, TaskSettings
from trunkline.project.data import read_task
from trunkline.project.example import example_rows
from trunkline.project.files import PROJECT_FILE, TASKS_FOLDER
from trunkline.project.inference import guess_columns, task_name
from trunkline.project.readers import EXTENSIONS, Table, peek_columns, read_table
from trunkline.project.tasks import TARGET, Kind

DATA_FOLDER = "data"
SEPARATORS = ";\t|"

Made = list[tuple[Path, str]]


def new_project(
    folder: Path, source: Path | None = None, text: str | None = None, text_pair: str | None = None
) -> Made:
    """Write a project and say what each file is: an example, or one task per label column of the table `source`.

    Raises UsageError where the folder holds a project or an argument does not fit, ProjectError with what is wrong in
    the table. Either way nothing is left behind.
    """
    if source is None and (text or text_pair):
        raise UsageError(f"{'--text' if text else '--text-pair'} names a column of a table; name the table with --from")
    for taken in (PROJECT_FILE, TASKS_FOLDER):
        if (folder / taken).exists():
            raise UsageError(f"{folder} holds a project already: {folder / taken} exists")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder")
    table = None if source is None else _Choice.of(source, text, text_pair)
    with _writing(folder):
        if folder.exists():
            return _into(folder, table)
        scratch = scratch_folder(folder.absolute())
        try:
            made = _write(scratch, _name_of(folder), table)
            if not publish_folder(scratch, folder.absolute()):
                raise UsageError(f"{folder} was made by another process in the meantime")
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return [(folder / path, what) for path, what in made]


def add_task(
    root: Path,
    name: str,
    kind: str,
    train: str,
    text: str | None = None,
    label: str | None = None,
    pair: str | None = None,
) -> Path:
    """Write tasks/NAME.toml for the data file `train` (as seen from `root`, or a hub name).

    `text`, `label` and `pair` name its columns. Raises UsageError where the name is taken or something does not exist.
    """
    _needs_project(root)
    if not TASK_NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be the name of a task: a-z, 0-9, _ and -, the first a letter or digit "
            f"(for instance '{task_name(name, ())}')"
        )
    path = root / TASKS_FOLDER / f"{name}.toml"
    if path.exists():
        raise UsageError(f"there is a task '{name}' already: {path}")
    if kind not in list(Kind):
        raise UsageError(unknown("kind", kind, [known.value for known in Kind]))
    learned = Kind(kind)
    if pair is not None and learned is Kind.TAGGING:
        raise UsageError("a tagging task reads one text; leave --text-pair out")
    roles = {"tokens" if learned is Kind.TAGGING else "text": text, "text_pair": pair, TARGET[learned]: label}
    separator = _check_train(root, train, roles)
    content = _task_toml(learned, train, {role: column for role, column in roles.items() if column}, separator)
    TaskSettings.model_validate(tomllib.loads(content))
    with _writing(path):
        path.parent.mkdir(exist_ok=True)
        write_text(path, content)
    return path


def remove_task(root: Path, name: str) -> Path:
    """Delete tasks/NAME.toml; data and releases stay. Raises UsageError for an unknown name."""
    _needs_project(root)
    folder = root / TASKS_FOLDER
    known = {path.stem: path for path in folder.glob("*.toml")} if folder.is_dir() else {}
    if name not in known:
        raise UsageError(unknown("task", name, known))
    with _writing(known[name]):
        known[name].unlink()
        sync_folder(folder)
    return known[name]


@dataclass(frozen=True)
class _Choice:
    """The table that a project is made from, and its columns with the texts."""

    source: Path
    separator: str
    text: str
    text_pair: str | None

    @classmethod
    def of(cls, source: Path, text: str | None, text_pair: str | None) -> _Choice:
        """Check the arguments against the table's header."""
        if source.suffix.lower() not in EXTENSIONS:
            raise UsageError(f"--from {source}: not a table that can be read; known are {', '.join(EXTENSIONS)}")
        if not source.is_file():
            raise UsageError(f"--from {source}: no such file")
        separator = _separator(source.parent, source.name)
        columns = peek_columns(source.parent, source.name, separator)
        named = ", ".join(columns) or "none that can be read"
        if text is None:
            raise UsageError(f"--from needs --text COLUMN, the column with the text (columns of {source}: {named})")
        # In jsonl a column may be missing from the first row; the rows themselves are checked later.
        if columns and source.suffix.lower() != ".jsonl":
            for column in (text, text_pair):
                if column is not None and column not in columns:
                    raise UsageError(f"--from {source}: {unknown('column', column, columns)}")
        if text == text_pair:
            raise UsageError(f"--text and --text-pair both name the column '{text}'")
        if text_pair is None and text != "text_pair" and "text_pair" in columns:
            text_pair = "text_pair"  # as a task file reads such a table
        return cls(source, separator, text, text_pair)


def _into(folder: Path, table: _Choice | None) -> Made:
    """Write into a folder that is there already; project.toml comes last, since it is what makes a folder a project."""
    scratch = scratch_folder(folder / "project")
    placed: list[Path] = []
    try:
        made = _write(scratch, _name_of(folder), table)
        data = folder / DATA_FOLDER
        if not data.exists():
            placed.append(data)
            data.mkdir()
        for path in sorted((scratch / DATA_FOLDER).iterdir()):
            target = data / path.name
            if target.exists():
                if table is not None and target.samefile(table.source):
                    continue  # the table lies where it belongs
                raise UsageError(f"{target} exists already")
            placed.append(target)
            path.rename(target)
        for name in (TASKS_FOLDER, PROJECT_FILE):
            placed.append(folder / name)
            (scratch / name).rename(folder / name)
        sync_folder(folder)
    except BaseException:
        for path in reversed(placed):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [(folder / path, what) for path, what in made]


def _write(root: Path, name: str, table: _Choice | None) -> Made:
    """Write all of a project into the empty folder `root`; paths are given as seen from it."""
    (root / TASKS_FOLDER).mkdir()
    (root / DATA_FOLDER).mkdir()
    write_text(root / PROJECT_FILE, _project_toml(name))
    made: Made = [(Path(PROJECT_FILE), "settings, each default as a comment")]
    if table is not None:
        return made + _write_tasks(root, table)
    data, task = f"{DATA_FOLDER}/example.jsonl", f"{TASKS_FOLDER}/intent.toml"
    write_text(root / data, example_rows())
    write_text(root / task, _task_toml(Kind.CLASSIFICATION, data, {}, ","))
    return [*made, (Path(task), "an example task: what a message asks for"), (Path(data), "its 40 messages")]


def _write_tasks(root: Path, choice: _Choice) -> Made:
    data = f"{DATA_FOLDER}/{choice.source.name}"
    shutil.copyfile(choice.source, root / data)
    table = read_table(root, data, (data, ""), choice.separator)
    if not isinstance(table, Table):
        raise ProjectError(table)
    texts = {"text": choice.text} | ({"text_pair": choice.text_pair} if choice.text_pair else {})
    for column in texts.values():
        if column not in table.columns:
            raise UsageError(f"--from {choice.source}: {unknown('column', column, table.columns)}")
    made: Made = [(Path(data), f"a copy of {choice.source}, {len(table.rows):,} rows")]
    skipped: Made = []
    names: list[str] = []
    problems: list[Problem] = []
    for guess in guess_columns(table, texts.values()):
        if guess.kind is None:
            skipped.append((Path(data), f"column '{guess.column}' makes no task: {guess.about}"))
            continue
        name = task_name(guess.column, names)
        content = _task_toml(guess.kind, data, {**texts, TARGET[guess.kind]: guess.column}, choice.separator)
        try:
            read_task(root, name, TaskSettings.model_validate(tomllib.loads(content)))
        except ProjectError as error:
            problems += error.problems
            first = str(error.problems[0]).replace("\n    ", " ")
            skipped.append((Path(data), f"column '{guess.column}' makes no task: {first}"))
            continue
        names.append(name)
        write_text(root / TASKS_FOLDER / f"{name}.toml", content)
        made.append((Path(TASKS_FOLDER, f"{name}.toml"), f"{guess.kind} of '{guess.column}', {guess.about}"))
    if problems and not names:
        raise ProjectError(dict.fromkeys(problems))
    if not names:
        reasons = "".join(f"\n  {what}" for _, what in skipped) or " there is none besides the texts"
        raise UsageError(f"--from {choice.source}: no column with labels:{reasons}")
    return made + skipped


def _project_toml(name: str) -> str:
    """project.toml: the name is set, every other key stands there as a comment with its default."""
    lines = ["# What every task of the project shares. A key that is commented out shows its default.", ""]
    tables: list[tuple[str, type[BaseModel]]] = []
    for key, field in ProjectSettings.model_fields.items():
        default = field.default
        if isinstance(default, BaseModel):
            tables.append((key, type(default)))
        elif key == "name":
            lines.append(f"name = {_toml(name)}")
        else:
            lines.append(_comment(key, default, field.description))
    for key, model in tables:
        lines += ["", f"[{key}]  # {model.__doc__ or ''}".rstrip()]
        lines += [_comment(inner, field.default, field.description) for inner, field in model.model_fields.items()]
    return "\n".join(lines) + "\n"


_SHOWN = ("metric", "max_tokens", "tune.layers", "tune.epochs", "distill.layers")
"""Keys of a task that are changed most; the others are in docs/project-file.md."""


def _task_toml(kind: Kind, train: str, columns: dict[str, str], separator: str) -> str:
    lines = [f"kind = {_toml(kind.value)}"]
    for path in _SHOWN:
        model: type[BaseModel] = TaskSettings
        *tables, key = path.split(".")
        for name in tables:
            model = type(model.model_fields[name].default)
        field = model.model_fields[key]
        lines.append(_comment(path, field.default, field.description))
    lines += ["", "[data]", f"train = {_toml(train)}"]
    lines.append('# test = "data/test.jsonl"  # Rows to report on; without them they are cut from train.')
    if separator != ",":
        lines.append(f"separator = {_toml(separator)}")
    renamed = {role: column for role, column in columns.items() if column != role or role == "text_pair"}
    if renamed:
        lines += ["", "[data.columns]"] + [f"{role} = {_toml(column)}" for role, column in renamed.items()]
    return "\n".join(lines) + "\n"


def _comment(key: str, default: Any, description: str | None) -> str:
    # TOML has no null: a key without a default stands there without a value.
    shown = f"# {key} =" if default is None else f"# {key} = {_toml(default)}"
    return f"{shown:<34}# {description or ''}".rstrip()


def _toml(value: Any) -> str:
    """A value as TOML; a JSON string is a TOML string, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _separator(root: Path, source: str) -> str:
    """The character between the cells of a csv, by its header: the comma unless it finds one column with another."""
    if Path(source).suffix.lower() != ".csv" or len(peek_columns(root, source, ",")) != 1:
        return ","
    return max(SEPARATORS, key=lambda mark: len(peek_columns(root, source, mark))) if _split(root, source) else ","


def _split(root: Path, source: str) -> bool:
    return any(len(peek_columns(root, source, mark)) > 1 for mark in SEPARATORS)


def _check_train(root: Path, train: str, roles: dict[str, str | None]) -> str:
    """Whether a task can be made of this file, as far as its header says; the separator of its cells."""
    if train.startswith("hub:"):
        return ","
    path = root / train
    if path.suffix.lower() not in EXTENSIONS:
        raise UsageError(f"--train {train}: not a data file that can be read; known are {', '.join(EXTENSIONS)}")
    if not path.is_file():
        raise UsageError(f"--train {train}: no such file, as seen from {root.resolve()}")
    separator = _separator(root, train)
    columns: Sequence[str] = peek_columns(root, train, separator)
    option = {"text": "--text", "tokens": "--text", "text_pair": "--text-pair"}
    for role, named in roles.items():
        if columns and named is not None and named not in columns:
            raise UsageError(f"{option.get(role, '--label')}: {unknown('column', named, columns)}")
        if columns and named is None and role != "text_pair" and role not in columns:
            flag = option.get(role, "--label")
            raise UsageError(f"{train} has no column '{role}'; name it with {flag} (columns: {', '.join(columns)})")
    return separator


def _needs_project(root: Path) -> None:
    if not (root / PROJECT_FILE).is_file():
        raise UsageError(f"{root.resolve()} is no project: it has no {PROJECT_FILE} (trunkline init makes one)")


def _name_of(folder: Path) -> str:
    return folder.resolve().name or "project"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in plain words why something cannot be written."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be written: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"{path} cannot be written: a name in it is not valid Unicode") from error
