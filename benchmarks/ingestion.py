"""Articles a second from a MediaWiki dump to the passages table, at growing sizes, and by one core beside two.

Dumps are written by `tests/dump.py` from the demo corpus's text. Every measurement is a run of its own on a local Ray
whose workers have been started by a small dump before; memory is the highest resident set of any of them.
Usage: python benchmarks/ingestion.py [ARTICLES]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray

from sciqa.core import cluster
from sciqa.core.options import RunOptions
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]
from dump import write_dump  # noqa: E402
from search import Peak  # noqa: E402

ROUNDS = 3


def measure(first: str, dump: str, cpus: int) -> None:
    """Print articles a second and the peak memory of a worker, in MB, as JSON."""
    cluster.connect_cluster(RunOptions(num_cpus=cpus))
    with tempfile.TemporaryDirectory() as folder:
        build_passages(CorpusOptions(output=f"{folder}/first", corpus=(first,), part_bytes=20_000))
        peak, started = Peak(), time.monotonic()
        made = build_passages(CorpusOptions(output=f"{folder}/run", corpus=(dump,), part_bytes=1_000_000))
        seconds = time.monotonic() - started
        print(json.dumps({"rate": made.details["articles"] / seconds, "peak": peak.stop()}))
    ray.shutdown()


def run(first: str, dump: str, cpus: int) -> dict:
    """Return what `measure` prints in a process of its own."""
    command = [sys.executable, __file__, first, dump, str(cpus)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Print the rates at 1, 2 and 4 times a number of articles on two cores, and at 2 times it on one."""
    articles = int(sys.argv[1]) if len(sys.argv) > 1 else 16_000
    with tempfile.TemporaryDirectory() as folder:
        dumps = {}
        for size in (200, articles, 2 * articles, 4 * articles):
            dumps[size] = f"{folder}/{size}.xml.bz2"
            write_dump(Path(dumps[size]), size)
        settings = [(articles, 2), (2 * articles, 2), (4 * articles, 2), (2 * articles, 1)]
        found: dict[tuple, list[dict]] = {setting: [] for setting in settings}
        for _ in range(ROUNDS):
            for size, cpus in settings:
                found[size, cpus].append(run(dumps[200], dumps[size], cpus))
        for (size, cpus), rows in found.items():
            rates = [row["rate"] for row in rows]
            peak = max(row["peak"] for row in rows)
            print(
                f"{size:>7,} articles, {cpus} cores: median {statistics.median(rates):.0f} articles/s "
                f"({min(rates):.0f} to {max(rates):.0f}), peak of a worker {peak:.0f} MB"
            )
        pairs = zip(found[2 * articles, 2], found[2 * articles, 1], strict=True)
        ratios = [two["rate"] / one["rate"] for two, one in pairs]
        print(f"two cores to one: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
