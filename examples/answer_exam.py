"""An exam in, answers out: `python examples/answer_exam.py questions.csv articles.jsonl run`."""

import sys

import pandas as pd

from sciqa.pipeline import RunExamOptions, run_exam

exam, corpus, output = sys.argv[1:]
made = run_exam(RunExamOptions(exam=exam, corpus=(corpus,), output=output, reader="retrieval"))
answers = pd.read_parquet(next(summary.path for summary in made if summary.stage == "predict"))
print(answers[["id", "prediction", "average_precision"]].to_string(index=False))
