"""Say what a run will take, and which node types have room for it; nothing is started.

Run it where you plan, for no cluster is needed: `python jobs/plan.py --model meta-llama/Llama-2-7b-hf --method qlora`.
"""

import sys

from sciqa.cli import main

main(["plan", *sys.argv[1:]])
