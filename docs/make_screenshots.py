"""Makes docs/screenshots/*.png: the playground on a desktop, in the dark and on a phone.

    python docs/make_screenshots.py demo                       serve this project (or bundle), and take its pictures
    python docs/make_screenshots.py http://127.0.0.1:8000      take those of a server that runs already

Needs playwright (the Python package) and a Chromium on this machine: none is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).with_name("screenshots")
LARGEST = 150_000  # bytes of one picture
ASKED = {
    "text": "Could you move my dentist appointment to Thursday at 5 pm? It is urgent.",
    "pair": "Push my dentist visit to Thursday, 5 pm",
}
PICTURES: dict[str, dict[str, Any]] = {
    "playground": {"viewport": {"width": 1100, "height": 940}},
    "playground-dark": {"viewport": {"width": 1100, "height": 940}, "color_scheme": "dark"},
    "playground-phone": {"viewport": {"width": 360, "height": 780}, "is_mobile": True, "has_touch": True},
}


@contextmanager
def serving(served: str) -> Iterator[str]:
    """The address of a server: `served` itself, or one started for it that ends with the block."""
    if re.match(r"https?://", served):
        yield served.rstrip("/")
        return
    what = ["-C", served, "serve"] if Path(served, "project.toml").is_file() else ["serve", served]
    command = [sys.executable, "-m", "trunkline", *what, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:  # it says where, once it answers
                if found := re.search(r"https?://\S+", line):
                    yield found[0]
                    return
            sys.exit(f"the server ended without an address: {' '.join(command)}")
        finally:
            server.terminate()


def chromium() -> str:
    """The browser installed on this machine."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    sys.exit("no Chromium is installed on this machine")


def picture(browser: Browser, url: str, name: str, device: dict[str, Any]) -> None:
    """One picture of the page with its answers."""
    context = browser.new_context(reduced_motion="reduce", **device)
    page = context.new_page()
    page.goto(f"{url}/#{urlencode(ASKED)}")
    page.locator(".row").first.wait_for()
    if device.get("is_mobile"):
        page.locator("#pass").evaluate("section => section.scrollIntoView()")
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path)
    context.close()
    size = path.stat().st_size
    print(f"{path.name}: {size / 1000:.0f} kB")
    if size > LARGEST:
        sys.exit(f"{path.name} is larger than {LARGEST / 1000:.0f} kB")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(f"usage: {Path(__file__).name} PROJECT, BUNDLE or ADDRESS", file=sys.stderr)
        return 2
    FOLDER.mkdir(exist_ok=True)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with serving(arguments[0]) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=[*sandbox, "--disable-lcd-text"])
        for name, device in PICTURES.items():
            picture(browser, url, name, device)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
