"""Train with many options, side by side on Ray Tune.

On a cluster: `ray job submit --working-dir . -- python jobs/sweep.py --output s3://bucket/run --config sweep.yaml`.
"""

import sys

from sciqa.cli import main

main(["sweep", *sys.argv[1:]])
