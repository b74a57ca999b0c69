"""The `report` step: one HTML page about a run."""

from sciqa.report.report import ReportOptions, report

__all__ = ["ReportOptions", "report"]
