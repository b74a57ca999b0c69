"""Exam room: questions read and validated, answers scored."""

from sciqa.exam.questions import ExamOptions, open_exam, read_exam

__all__ = ["ExamOptions", "open_exam", "read_exam"]
