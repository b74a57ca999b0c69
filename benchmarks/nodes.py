"""Hours that all of English Wikipedia takes on 1, 10 and 100 nodes of 16 cores: a simulation with measured rates.

Nothing of that size was run. Each step is simulated as Ray Data runs it: workers take parts (of `corpus`) or shards (of
`index`) one after another from a queue, so that a step ends with its slowest last worker. What a part takes is its size
times a rate that was measured (docs/benchmarks.md), and varies from part to part; a worker starts once, and between two
of its parts passes what Ray Data takes. The first line is a run that was measured, simulated in the same way. The rest
is assumed: see NODE, SPREAD and THREAD. Usage: python benchmarks/nodes.py
"""

import heapq
import math

import numpy as np

#: English Wikipedia: bytes of XML, passages of 256 tokens, and their length beside passages of the demo corpus.
XML_BYTES, PASSAGES, LENGTH = 105e9, 40e6, 2.0
#: Measured on one core: bytes of XML that `corpus` reads in a second; passages of 107 tokens that `index` embeds by
#: all-MiniLM-L6-v2 in a second; seconds of `corpus`, and of `index` by a static embedder, a passage of 412 characters.
READ, EMBEDDED, CORPUS, STATIC = 1.8e6, 44.0, 0.73e-3, 0.24e-3
#: Measured: seconds between two parts of a worker, seconds until a worker has its model, and the 120 CPU seconds, taken
#: on two cores, of what `index` does once (training FAISS, and the static embedder's words).
BETWEEN, START, ONCE = 0.15, 10.0, 60.0
#: Assumed: cores of a node, and seconds until a node that is asked for is there.
CORES, NODE = 16, 90.0
#: Assumed: standard deviation of the logarithm of the time of equal parts, and what each thread of a worker beyond its
#: first adds to its speed.
SPREAD, THREAD = 0.2, 0.8


def step_seconds(parts: int, seconds: float, cores: int) -> float:
    """Return the seconds of a step, from its start to the end of its last part.

    Args:
        parts: number of parts.
        seconds: what one part takes on one core.
        cores: cores of all nodes.
    """
    workers = min(cores, parts)
    speed = 1 + THREAD * (min(cores // workers, CORES) - 1)
    times = seconds / speed * np.random.default_rng(0).lognormal(-(SPREAD**2) / 2, SPREAD, parts)
    free = [START] * workers
    for taken in times:
        heapq.heapreplace(free, free[0] + BETWEEN + taken)
    return max(free)


def main() -> None:
    """Print the run that was measured, and a row for each number of nodes, kind of embedder and size of shards."""
    corpus, index = step_seconds(40, 1_041_649 / 40 * CORPUS, 2), ONCE + step_seconds(40, 1_041_649 / 40 * STATIC, 2)
    print(f"2 cores, 1,041,649 passages: corpus {corpus:.0f} s (376 measured), index {index:.0f} s (197 measured)")
    print("nodes  embedder          passages a shard  corpus h  index h  together h  cores at work")
    for nodes in (1, 10, 100):
        for name, passage in (("static", LENGTH * STATIC), ("all-MiniLM-L6-v2", LENGTH / EMBEDDED)):
            for size in (65_536, 16_384):
                part, cores = 32e6, nodes * CORES
                corpus = step_seconds(math.ceil(XML_BYTES / part), part / READ, cores)
                index = ONCE + step_seconds(math.ceil(PASSAGES / size), size * passage, cores)
                whole = corpus + index + NODE
                share = (XML_BYTES / READ + PASSAGES * passage) / (whole * cores)
                hours = f"{corpus / 3600:8.2f} {index / 3600:8.2f} {whole / 3600:11.2f}"
                print(f"{nodes:5d}  {name:17s} {size:16,d}  {hours} {share:14.0%}")


if __name__ == "__main__":
    main()
