"""Turn articles into the passages table.

On a cluster: `ray job submit --working-dir . -- python jobs/corpus.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["corpus", *sys.argv[1:]])
