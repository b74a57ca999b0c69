"""Generate exam questions and instructions from passages by a language model, filter them, and score free answers."""

from sciqa.generate.evaluate_text import evaluate_text
from sciqa.generate.generate import generate
from sciqa.generate.options import EvaluateTextOptions, GenerateOptions

__all__ = ["EvaluateTextOptions", "GenerateOptions", "evaluate_text", "generate"]
