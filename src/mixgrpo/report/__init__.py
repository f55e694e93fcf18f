"""Turns a run or a comparison into a page of HTML that needs nothing else. Reads files only; no torch, no network."""

from mixgrpo.report.compare_page import write_comparison
from mixgrpo.report.html import write_report

__all__ = ["write_comparison", "write_report"]
