"""Writes that are complete or absent."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trunkline.atomic import (
    InUse,
    canonical_json,
    clear_leftovers,
    exclusive,
    in_use,
    publish_folder,
    scratch_folder,
    write_bytes,
    write_json,
    write_text,
)
from trunkline.errors import StoreError


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own; a kill of it leaves this one alive."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_written_file_holds_what_was_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"\x00\xff")
    write_text(tmp_path / "b", "häus\r\n")
    write_json(tmp_path / "c.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "häus\r\n".encode()
    assert (tmp_path / "c.json").read_text() == '{\n  "a": "ü",\n  "b": 1\n}\n'
    write_text(tmp_path / "b", "new")
    assert (tmp_path / "b").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"kept": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"lost": float("nan")})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_text(tmp_path / "folder", "a file cannot take the place of a folder")
    assert json.loads(path.read_text()) == {"kept": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "value.json"]


def test_canonical_json_is_one_form_for_one_value() -> None:
    assert canonical_json({"b": [1.5, None], "a": "é"}) == canonical_json({"a": "é", "b": [1.5, None]})
    assert canonical_json({"b": [1.5, None], "a": "é"}) == '{"a":"é","b":[1.5,null]}'.encode()


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_killed_at_any_step_leaves_the_old_content_or_the_new(tmp_path: Path, call: str, when: str) -> None:
    path = tmp_path / "value"
    path.write_text("old")
    code = f"""
        import os, signal, sys
        from pathlib import Path
        from trunkline.atomic import write_text
        real = {call}
        def killed(*arguments, **options):
            if {when == "after"}:
                real(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        {call} = killed
        write_text(Path(sys.argv[1]), "new")
    """
    assert run(code, path).returncode == -9
    assert path.read_text() == ("new" if (call, when) == ("os.replace", "after") else "old")
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["value"]


def test_a_published_folder_appears_whole_and_the_first_one_stays(tmp_path: Path) -> None:
    destination = tmp_path / "made" / "folder"
    for content, first in (("one", True), ("two", False)):
        scratch = scratch_folder(destination)
        (scratch / "inner").mkdir()
        (scratch / "inner" / "file").write_text(content)
        assert publish_folder(scratch, destination) is first
    assert (destination / "inner" / "file").read_text() == "one"
    assert [path.name for path in destination.parent.iterdir()] == ["folder"]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    (tmp_path / ".hidden").write_text("")
    (scratch_folder(tmp_path / "folder") / "file").write_text("")
    left = clear_leftovers(tmp_path)
    assert len(left) == 1
    assert left[0].endswith("-folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "kept"]
    assert clear_leftovers(tmp_path / "absent") == []


def test_a_lock_keeps_others_out_until_its_holder_dies(tmp_path: Path) -> None:
    lock = tmp_path / "made" / "lock"
    code = """
        import sys
        from pathlib import Path
        from trunkline.atomic import exclusive
        from trunkline.errors import StoreError
        try:
            with exclusive(Path(sys.argv[1]), wait=0):
                print("held")
        except StoreError as error:
            print(error)
    """
    with exclusive(lock):
        assert "another process" in run(code, lock).stdout
        with pytest.raises(StoreError, match="another process"), exclusive(lock, wait=0):
            pass
    assert run(code, lock).stdout == "held\n"
    kill = """
        import os, signal, sys
        from pathlib import Path
        from trunkline.atomic import exclusive
        with exclusive(Path(sys.argv[1])):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(kill, lock).returncode == -9
    with exclusive(lock, wait=0):
        assert lock.exists()


def test_a_folder_is_in_use_as_long_as_anyone_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    assert not in_use(folder)
    InUse(folder).close()  # one that is not there stays unmarked
    folder.mkdir()
    first, second = InUse(folder), InUse(folder)
    assert in_use(folder)
    first.close()
    assert in_use(folder)
    second.close()
    assert not in_use(folder)
    kill = """
        import os, signal, sys
        from pathlib import Path
        from trunkline.atomic import InUse, in_use
        mark = InUse(Path(sys.argv[1]))
        assert in_use(Path(sys.argv[1]))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(kill, folder).returncode == -9
    assert not in_use(folder)
