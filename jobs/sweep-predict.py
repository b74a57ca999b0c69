"""Rank an exam with many options, side by side on Ray Tune.

On a cluster: `ray job submit --working-dir . -- python jobs/sweep-predict.py --output s3://bucket/run --config FILE`.
"""

import sys

from sciqa.cli import main

main(["sweep-predict", *sys.argv[1:]])
