"""Make a static embedder: distilled from another, or word vectors trained on the passages.

On a cluster: `ray job submit --working-dir . -- python jobs/embedder.py --output s3://bucket/run --method skip-gram`.
"""

import sys

from sciqa.cli import main

main(["embedder", *sys.argv[1:]])
