"""Inference room: readers rank the options of every question; answers and metrics tables."""

from sciqa.inference.ask import AskOptions, ask
from sciqa.inference.predict import PredictOptions, predict

__all__ = ["AskOptions", "PredictOptions", "ask", "predict"]
