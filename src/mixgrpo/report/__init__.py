"""Turns a run folder into one self-contained HTML page. Reads files only; knows neither torch nor the network."""

from mixgrpo.report.html import write_report

__all__ = ["write_report"]
