"""sciqa: ranked answers to science exams, by retrieval and language models, on Ray.

Each step is a function that takes an object of options; docs/python.md shows them. A name is imported when it is first
used, so that the command line starts without Ray and PyTorch.
"""

import importlib
import os
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sciqa.ask.ask import ask as ask_question
    from sciqa.ask.options import AskOptions
    from sciqa.audit.audit import audit as audit_exam
    from sciqa.audit.options import AuditOptions
    from sciqa.core.errors import InputError, LostWorkersError
    from sciqa.core.summary import Summary
    from sciqa.core.tables import read_table
    from sciqa.corpus.options import CorpusOptions
    from sciqa.corpus.passages import build_passages
    from sciqa.exam import read_exam
    from sciqa.generate.evaluate_text import evaluate_text
    from sciqa.generate.generate import generate as generate_data
    from sciqa.generate.options import EvaluateTextOptions, GenerateOptions
    from sciqa.models.merge import merge
    from sciqa.models.options import MergeOptions
    from sciqa.planning.options import PlanOptions
    from sciqa.planning.plan import plan
    from sciqa.predict.options import PredictOptions, PromptOptions
    from sciqa.predict.predict import predict as predict_answers
    from sciqa.predict.show_prompts import show_prompts
    from sciqa.report.compare_readers import CompareOptions, compare_readers
    from sciqa.report.report import ReportOptions
    from sciqa.report.report import report as write_report
    from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, retrieve
    from sciqa.retrieval.options import EmbedderOptions
    from sciqa.retrieval.static_training import make_embedder
    from sciqa.run import RunExamOptions, run_exam
    from sciqa.run_training import (
        RunFinetuneOptions,
        RunSweepOptions,
        RunSweepPredictOptions,
        run_finetune,
        run_sweep,
        run_sweep_predict,
    )
    from sciqa.serve import ServeOptions
    from sciqa.serve.serve import serve as serve_answers
    from sciqa.training.finetune import finetune
    from sciqa.training.options import FinetuneOptions

__all__ = [
    "AskOptions",
    "AuditOptions",
    "CompareOptions",
    "CorpusOptions",
    "EmbedderOptions",
    "EvaluateTextOptions",
    "FinetuneOptions",
    "GenerateOptions",
    "IndexOptions",
    "InputError",
    "LostWorkersError",
    "MergeOptions",
    "PlanOptions",
    "PredictOptions",
    "PromptOptions",
    "ReportOptions",
    "RetrieveOptions",
    "RunExamOptions",
    "RunFinetuneOptions",
    "RunSweepOptions",
    "RunSweepPredictOptions",
    "ServeOptions",
    "Summary",
    "__version__",
    "ask_question",
    "audit_exam",
    "build_index",
    "build_passages",
    "compare_readers",
    "evaluate_text",
    "finetune",
    "generate_data",
    "make_embedder",
    "merge",
    "plan",
    "predict_answers",
    "read_exam",
    "read_table",
    "retrieve",
    "run_exam",
    "run_finetune",
    "run_sweep",
    "run_sweep_predict",
    "serve_answers",
    "show_prompts",
    "write_report",
]

__version__ = version("sciqa")

#: Names by module. Some functions have the name of their package, and another one here: `sciqa.ask` is the package.
_MODULES = {
    "sciqa.ask": ("AskOptions",),
    "sciqa.audit.options": ("AuditOptions",),
    "sciqa.core.errors": ("InputError", "LostWorkersError"),
    "sciqa.core.summary": ("Summary",),
    "sciqa.core.tables": ("read_table",),
    "sciqa.corpus.options": ("CorpusOptions",),
    "sciqa.corpus.passages": ("build_passages",),
    "sciqa.exam": ("read_exam",),
    "sciqa.generate": ("EvaluateTextOptions", "GenerateOptions", "evaluate_text"),
    "sciqa.models.merge": ("MergeOptions", "merge"),
    "sciqa.run": ("RunExamOptions", "run_exam"),
    "sciqa.run_training": (
        "RunFinetuneOptions",
        "RunSweepOptions",
        "RunSweepPredictOptions",
        "run_finetune",
        "run_sweep",
        "run_sweep_predict",
    ),
    "sciqa.planning.options": ("PlanOptions",),
    "sciqa.planning.plan": ("plan",),
    "sciqa.predict": ("PredictOptions",),
    "sciqa.predict.show_prompts": ("PromptOptions", "show_prompts"),
    "sciqa.report": ("ReportOptions",),
    "sciqa.report.compare_readers": ("CompareOptions", "compare_readers"),
    "sciqa.retrieval": ("IndexOptions", "RetrieveOptions", "build_index", "retrieve"),
    "sciqa.retrieval.static_training": ("EmbedderOptions", "make_embedder"),
    "sciqa.serve": ("ServeOptions",),
    "sciqa.training": ("FinetuneOptions", "finetune"),
}
_PUBLIC = {name: (module, name) for module, names in _MODULES.items() for name in names} | {
    "ask_question": ("sciqa.ask", "ask"),
    "audit_exam": ("sciqa.audit.audit", "audit"),
    "generate_data": ("sciqa.generate", "generate"),
    "predict_answers": ("sciqa.predict", "predict"),
    "serve_answers": ("sciqa.serve", "serve"),
    "write_report": ("sciqa.report", "report"),
}

# Ray reads this on import, and then prints no death of a worker: `sciqa.core.worker_loss` reports it.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed|retries remaining, so the task will be"
)
# gRPC would print, when Ray ends, that the connection to it was closed.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, inner = _PUBLIC[name]
    globals()[name] = value = getattr(importlib.import_module(module), inner)
    return value


def __dir__() -> list[str]:
    """Return the names of this module, those that are not imported yet too."""
    return sorted({*globals(), *__all__})
