"""An exam in, answers out: `python examples/answer_exam.py questions.csv articles.jsonl run`."""

import sys

import sciqa

exam, corpus, output = sys.argv[1:]
made = sciqa.run_exam(sciqa.RunExamOptions(exam=exam, corpus=(corpus,), output=output, reader="retrieval"))
answers = sciqa.read_table(next(summary.path for summary in made if summary.stage == "predict")).to_pandas()
print(answers[["id", "prediction", "average_precision"]].to_string(index=False))
