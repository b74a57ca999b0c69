"""A cascade of two trained readers beside the stronger one alone: seconds, and MAP@3.

The readers are those of both recipes, which `sciqa finetune --config jobs/recipes/….yaml --output RUN` has trained:
MiniLM with one passage answers all questions, and SmolLM2, with two, those that MiniLM is least certain of. All
questions of the packaged exam are answered, for with few of them starting the workers outweighs reading; the readers
were trained on the split `train`, so MAP@3 is told of the others, of which validation chose the best step of each.
Usage: python benchmarks/cascade.py RUN [nf4|bfloat16 [SHARE [QUESTIONS_OF_EACH_SPLIT]]]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sciqa.core import tables
from sciqa.exam import read_exam
from sciqa.predict import PredictOptions, predict
from sciqa.retrieval import RetrieveOptions, retrieve


def write_exam(path, most):
    """Write the questions of all splits as one exam, each with its split in its id."""
    tables = []
    for split in ("train", "validation", "test"):
        table = read_exam(split).slice(0, most)
        ids = pa.array([f"{split}-{each}" for each in table["id"].to_pylist()])
        tables.append(table.set_column(table.schema.get_field_index("id"), "id", ids))
    pq.write_table(pa.concat_tables(tables), path)


def measure(options):
    """Answer, and return the seconds, and MAP@3 of both splits that were not trained on and of the test split."""
    seconds = predict(options).details["seconds"]
    rows = tables.read_table(f"{options.output}/answers/{options.name}").to_pylist()
    unseen = [row for row in rows if not row["id"].startswith("train-")]
    test = [row for row in unseen if row["id"].startswith("test-")]
    return seconds, *(np.mean([row["average_precision"] for row in each]) for each in (unseen, test))


def main():
    """Print the seconds of each reader, those as a share of the strong one's, and its MAP@3."""
    run, kind, share, most = [*sys.argv[1:], *("", "nf4", "0.2", "1000")[len(sys.argv) - 1 :]]
    run = Path(run).absolute()
    with tempfile.TemporaryDirectory() as folder:
        exam = f"{folder}/exam.parquet"
        write_exam(exam, int(most))
        common = {"exam": exam, "output": f"{folder}/run"}
        one, index = f"{folder}/run/contexts-1", {"passages": f"{run}/passages", "index": f"{run}/index"}
        retrieve(RetrieveOptions(**common, **index, context_passages=1, contexts=one))
        retrieve(RetrieveOptions(**common, **index, context_passages=2))
        strong = {"adapter": f"{run}/trained/smollm2-qlora", "nf4": kind == "nf4"}
        cheap = PredictOptions(**common, model=f"{run}/trained/minilm", contexts=one, name="cheap")
        cascade = {"cascade": "cheap", "cascade_share": float(share), "name": "cascade"}
        found = {
            "cheap": measure(cheap),
            "strong": measure(PredictOptions(**common, **strong, name="strong")),
            "cascade": measure(PredictOptions(**common, **strong, **cascade)),
        }
    print(f"{'':<10}{'seconds':>9}{'to strong':>11}{'MAP@3 unseen':>14}{'test':>8}")
    for name, (seconds, unseen, test) in found.items():
        print(f"{name:<10}{seconds:>9.1f}{seconds / found['strong'][0]:>11.2f}{unseen:>14.4f}{test:>8.4f}")


if __name__ == "__main__":
    main()
