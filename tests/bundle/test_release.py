"""Releases: which bundle is live, and how that moves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from branches import INPUTS, Made, random_branch

from trunkline.atomic import exclusive
from trunkline.bundle import Bundle, Releases
from trunkline.bundle.merge import merge
from trunkline.errors import BundleError, StoreError, UsageError
from trunkline.model.branch import save_branch


@pytest.fixture
def home(made: Made, tmp_path: Path) -> Path:
    """A store with three bundles: intent; intent and slots; another intent and slots."""
    home = tmp_path / ".trunkline"
    one = merge(made.source, made.some("intent"), INPUTS, home / "bundles", name="x")
    two = merge(made.source, made.some("intent", "slots"), INPUTS, home / "bundles", one, name="x")
    save_branch(random_branch(made.trunk, "intent", seed=5), tmp_path / "intent")
    files = {**made.some("slots"), "intent": tmp_path / "intent"}
    three = merge(made.source, files, INPUTS, home / "bundles", two, name="x")
    (home / "order").write_text(json.dumps([one.name, two.name, three.name]))
    return home


def bundles(home: Path) -> list[Path]:
    return [home / "bundles" / name for name in json.loads((home / "order").read_text())]


def test_the_first_release_and_the_next_become_live(home: Path) -> None:
    releases = Releases(home)
    one, two, _ = bundles(home)
    assert releases.live() is None
    assert releases.list() == ()
    first = releases.publish(one, "first try")
    assert releases.live() == first
    assert (first.id, first.note, sorted(first.tasks)) == ("r1", "first try", ["intent"])
    second = releases.publish(two)
    assert releases.live() == second
    assert Releases(home).list() == (first, second)
    assert Releases(home).get("r1") == first
    assert Bundle.load(releases.folder(second)).tasks == ("intent", "slots")
    assert first.tasks == Bundle.load(one).manifest.hashes()


def test_publishing_what_is_live_changes_nothing(home: Path) -> None:
    releases = Releases(home)
    first = releases.publish(bundles(home)[0], "first")
    before = (home / "releases.json").read_bytes()
    assert releases.publish(bundles(home)[0], "again") == first
    assert (home / "releases.json").read_bytes() == before


def test_rollback_goes_to_the_release_before_or_to_the_one_named(home: Path) -> None:
    releases = Releases(home)
    for bundle in bundles(home):
        releases.publish(bundle)
    assert releases.rollback().id == "r2"
    assert releases.rollback().id == "r1"
    with pytest.raises(UsageError, match="no release before"):
        releases.rollback()
    assert releases.rollback("r3").id == "r3"
    live = releases.live()
    assert live is not None
    assert live.id == "r3"
    assert [release.id for release in releases.list()] == ["r1", "r2", "r3"]
    assert releases.publish(bundles(home)[0]).id == "r4"


def test_unknown_releases_are_named_with_the_known(home: Path) -> None:
    releases = Releases(home)
    with pytest.raises(UsageError, match="no release before"):
        releases.rollback()
    releases.publish(bundles(home)[0])
    for call in (releases.get, releases.rollback, lambda id: releases.diff("r1", id)):
        with pytest.raises(UsageError, match=r"unknown release 'r7' \(releases: r1\)"):
            call("r7")


def test_diff_tells_what_became_of_each_task(home: Path) -> None:
    releases = Releases(home)
    for bundle in bundles(home):
        releases.publish(bundle)
    grown = releases.diff("r1", "r2")
    assert (grown.added, grown.removed, grown.changed, grown.same) == (("slots",), (), (), ("intent",))
    replaced = releases.diff("r2", "r3")
    assert (replaced.added, replaced.removed, replaced.changed, replaced.same) == ((), (), ("intent",), ("slots",))
    back = releases.diff("r3", "r1")
    assert (back.added, back.removed, back.changed, back.same) == ((), ("slots",), ("intent",), ())


def test_a_damaged_or_foreign_bundle_does_not_go_live(home: Path, tmp_path: Path) -> None:
    releases = Releases(home)
    one, two, three = bundles(home)
    first = releases.publish(one)
    (two / "probes.json").write_text("{}")
    with pytest.raises(BundleError, match="damaged"):
        releases.publish(two)
    with pytest.raises(BundleError, match="cannot release it"):
        releases.publish(shutil.copytree(three, tmp_path / three.name))
    renamed = shutil.copytree(three, home / "bundles" / "mine")
    with pytest.raises(BundleError, match="not named by its content"):
        releases.publish(renamed)
    with pytest.raises(BundleError, match="not a bundle"):
        releases.publish(home / "bundles" / "absent")
    releases.publish(three)
    shutil.rmtree(one)
    with pytest.raises(BundleError, match="not a bundle"):
        releases.rollback("r1")
    live = releases.live()
    assert live is not None
    assert live.id == "r2"
    assert releases.list()[0] == first


def test_a_collector_learns_what_releases_need_and_forgetting_frees_it(home: Path) -> None:
    releases = Releases(home)
    one, two, three = bundles(home)
    assert releases.list() == ()
    for bundle in (one, two, three):
        releases.publish(bundle)
    assert {releases.folder(release) for release in releases.list()} == {one, two, three}
    releases.rollback("r1")
    assert [release.id for release in releases.forget(keep=1)] == ["r2"]
    assert {releases.folder(release) for release in releases.list()} == {one, three}
    assert releases.forget(keep=0) == ()
    assert releases.publish(two).id == "r4"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"live": "r1", "history": []}',
        b'{"live": null, "history": [{"id": "r1"}]}',
        b'{"live": null, "history": [{"id": "r1", "bundle": "../../x", "created": "", "note": "", "tasks": {}}]}',
        b'{"live": null, "history": [{"id": "x", "bundle": "bundles/0123456789abcdef", "created": "", "note": "", '
        b'"tasks": {}}]}',
    ],
)
def test_a_damaged_list_of_releases_is_reported_and_kept(home: Path, content: bytes) -> None:
    (home / "releases.json").write_bytes(content)
    releases = Releases(home)
    for call in (releases.live, releases.list, releases.rollback):
        with pytest.raises(StoreError, match=r"releases\.json"):
            call()
    with pytest.raises(StoreError, match=r"releases\.json"):
        releases.publish(bundles(home)[0])
    assert (home / "releases.json").read_bytes() == content


def test_two_processes_publishing_at_once_both_get_their_release(home: Path) -> None:
    code = """
import sys
from pathlib import Path
from trunkline.bundle import Releases
home, *names = sys.argv[1:]
for _ in range(10):
    for name in names:
        Releases(Path(home)).publish(Path(home) / "bundles" / name)
"""
    one, two, three = (bundle.name for bundle in bundles(home))
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(home), *names]) for names in ((one, two), (two, three, one))
    ]
    assert [process.wait() for process in running] == [0, 0]
    ids = [release.id for release in Releases(home).list()]
    assert ids == [f"r{number}" for number in range(1, len(ids) + 1)]
    assert len(ids) >= 20


def test_publishing_waits_for_its_turn_and_says_so(home: Path) -> None:
    releases = Releases(home, wait=0)
    with exclusive(home / "releases.lock"):
        with pytest.raises(StoreError, match="another process"):
            releases.publish(bundles(home)[0])
        assert releases.live() is None
