"""Report room: one HTML page of a run."""

from sciqa.report.report import ReportOptions, report

__all__ = ["ReportOptions", "report"]
