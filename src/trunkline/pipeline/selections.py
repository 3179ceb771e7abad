"""What was selected for each bundle, and from what: kept beside the bundles in `selections/<bundle id>.json`.

Knows names and stage keys; nothing of what they stand for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from trunkline.atomic import write_json
from trunkline.bundle.release import Release


@dataclass
class Selection:
    """What was chosen for a bundle, and from what."""

    wish: str
    candidates_key: dict[str, str]
    budget_key: str
    chosen: dict[str, str]  # task -> candidate id
    branch: dict[str, str]  # task -> stage key of the branch
    prepared: dict[str, str]  # task -> stage key of its data
    met: bool = True
    exits: dict[str, str] = field(default_factory=dict)  # task -> stage key of the finished branch, with scope or exits

    def file_of(self, task: str) -> str:
        """The stage whose branch file was merged."""
        return self.exits.get(task, self.branch[task])

    def take(self, task: str, other: Selection) -> None:
        """Take over what another selection says of a task."""
        for name in ("candidates_key", "chosen", "branch", "prepared", "exits"):
            if task in getattr(other, name):
                getattr(self, name)[task] = getattr(other, name)[task]


class Selections:
    """Those of all bundles of a project, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, release: Release) -> Selection | None:
        """The selection that a release was made from, if it is known."""
        try:
            return Selection(**json.loads(self._file(release.bundle).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, bundle: str, selection: Selection) -> None:
        """Keep the selection of a bundle."""
        self._folder.mkdir(exist_ok=True)
        write_json(self._file(bundle), vars(selection))

    def _file(self, bundle: str) -> Path:
        return self._folder / f"{Path(bundle).name}.json"
