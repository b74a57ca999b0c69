"""Exam room: questions validated, answers scored, the run reported."""

from sciqa.exam.questions import ExamOptions, open_exam, read_exam
from sciqa.exam.report import ReportOptions, report

__all__ = ["ExamOptions", "ReportOptions", "open_exam", "read_exam", "report"]
