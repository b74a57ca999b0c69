"""Exams: read and validate questions, score answers."""

from sciqa.exam.questions import ExamOptions, open_exam, read_exam

__all__ = ["ExamOptions", "open_exam", "read_exam"]
