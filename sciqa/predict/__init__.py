"""Predict room: readers rank the options of every question; answers and metrics tables."""

from sciqa.predict.predict import PredictOptions, predict

__all__ = ["PredictOptions", "predict"]
