"""The `predict` step: readers rank the options of every question and write the answers and metrics tables."""

from sciqa.predict.options import PredictOptions
from sciqa.predict.predict import predict

__all__ = ["PredictOptions", "predict"]
