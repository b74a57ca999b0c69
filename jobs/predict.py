"""Rank the options of every question.

On a cluster: `ray job submit --working-dir . -- python jobs/predict.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["predict", *sys.argv[1:]])
