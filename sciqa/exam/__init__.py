"""Exams: read and validate questions, score answers."""

from sciqa.exam.open_exam import open_exam, read_exam
from sciqa.exam.options import ExamOptions

__all__ = ["ExamOptions", "open_exam", "read_exam"]
