"""A Chromium for the tests of the playground's page, where this machine has none and one can be had.

One that is installed is used, and nothing is downloaded. Else playwright's own is, into its cache outside this folder,
if it is there or can be downloaded soon. Never fails: without one, a line says that the page's tests will be skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys

INSTALLED = ("chromium", "chromium-browser", "google-chrome", "chrome")
SILENCE = 3000  # milliseconds without a byte until an attempt ends; playwright makes five
LONGEST = 120.0  # seconds of a download


def main() -> None:
    """Find one, or fetch one, or say so."""
    if any(map(shutil.which, INSTALLED)) or starts():
        return
    if download() and starts():
        return
    print("no Chromium on this machine, and none to be had now: the page's tests will be skipped", file=sys.stderr)


def starts() -> bool:
    """Whether playwright's own is there, and this machine has the libraries that it needs."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return False
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    try:
        with sync_playwright() as playwright:
            playwright.chromium.launch(args=sandbox).close()
    except Error:
        return False
    return True


def download() -> bool:
    """Fetch playwright's own, without a word of it."""
    command = [sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"]
    environment = {**os.environ, "PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": str(SILENCE)}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True) as process:
        try:
            return process.wait(LONGEST) == 0
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it downloads in a process of its own
            return False


if __name__ == "__main__":
    main()
