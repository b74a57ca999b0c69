"""Divide generated instructions into training, validation and held-out ones, none of which share a passage.

`python split_triples.py RUN/generated/instructions RUN/triples`; with `--by source`, none share a document.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from sciqa.core.errors import InputError
from sciqa.core.storage import absolute_path
from sciqa.core.tables import read_table, read_table_manifest

#: Share of the passages (or documents) in each file; the rest is for training.
HELD_OUT, VALIDATION = 0.3, 0.1


def main() -> None:
    """Write train.jsonl, validation.jsonl and held-out.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", help="folder that `sciqa generate --kind instructions` wrote")
    parser.add_argument("folder", type=Path, help="folder of the three files")
    parser.add_argument("--by", default="passage_id", choices=("passage_id", "source"))
    given = parser.parse_args()
    splits = {"train": [], "validation": [], "held-out": []}
    read_table_manifest(absolute_path(given.table), "generate")  # an unfinished table is refused
    for row in read_table(given.table).to_pylist():
        splits[split_of(row[given.by])].append(row)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (given.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(", ".join(f"{name}: {len(rows)}" for name, rows in splits.items()))


def split_of(key: str) -> str:
    """Return the split of a passage or document, which its hash decides, whatever others there are."""
    share = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32
    return "held-out" if share < HELD_OUT else "validation" if share < HELD_OUT + VALIDATION else "train"


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
