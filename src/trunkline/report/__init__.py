"""The report of a run: one self-contained HTML page and tables for the terminal.

Both read the pipeline's report data (a JSON-ready dict) and nothing else: no store, no bundle, no network.
"""

from __future__ import annotations

from trunkline.report.page import render
from trunkline.report.terminal import print_report

__all__ = ["print_report", "render"]
