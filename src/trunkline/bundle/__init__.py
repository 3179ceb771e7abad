"""Bundles: merged models on disk and in memory, and the releases of a project.

`trunkline.bundle.merge.merge` makes a bundle, `Bundle.load` opens one, `Releases` says which is live.
"""

from trunkline.bundle.loaded import Bundle
from trunkline.bundle.manifest import Manifest, verify
from trunkline.bundle.release import Difference, Release, Releases

__all__ = ["Bundle", "Difference", "Manifest", "Release", "Releases", "verify"]
