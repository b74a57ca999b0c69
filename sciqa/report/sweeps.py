"""Sweeps on the page of a run: their trials, and plots of quality against what a trial takes."""

import math

from sciqa.core import storage, tables

#: Columns against which quality is plotted, in words.
PLOTTED = {
    "trained_parameters": "trained parameters",
    "peak_memory": "a worker's peak memory in bytes",
    "seconds": "seconds",
}


def read_sweeps(output: str) -> list[dict]:
    """Return the finished sweeps of a run: `name`, `measure`, `trains`, names of options that vary, rows and plots."""
    sweeps = []
    for name, folder in tables.finished_tables(storage.join_paths(output, "sweeps")):
        rows, measure = tables.read_table(folder).to_pylist(), tables.read_table_manifest(folder, "sweep")["measure"]
        said = measure.replace("map_at_3", "MAP@3").replace("_", " ")
        plots = [
            sweeps_plot(rows, f"{said} against {words}", measure, takes, log=takes == "trained_parameters")
            for takes, words in PLOTTED.items()
            if takes in rows[0]
        ]
        columns = list(rows[0])
        varied = columns[1 : columns.index(measure)]  # they stand between the trial and its figures
        about = {"name": name, "measure": measure, "said": f"Validation {said.removeprefix('validation ')}"}
        about["trains"] = "steps_done" in columns  # otherwise its trials are runs of `predict`
        sweeps.append(about | {"varied": varied, "rows": rows, "plots": plots})
    return sweeps


def sweeps_plot(rows: list[dict], about: str, measure: str, takes: str, log: bool = False) -> dict:
    """Return a plot of one figure of rows against another, with positions from 0 to 1; rows without both are left out.

    Args:
        rows: rows of a table; a row's number counts from 1.
        about: what the plot shows, in words.
        measure: column of the vertical figure; MAP@3 reaches from 0 to 1, another from its least value to its largest,
            or from or to 0 if all are on one side of it.
        takes: column of the horizontal figure.
        log: begin and end the horizontal axis at powers of ten; otherwise it begins at 0.
    """
    given = [(number, row) for number, row in enumerate(rows, 1) if None not in (row.get(takes), row.get(measure))]
    xs = [row[takes] for _, row in given]
    low, high = (math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs)))) if log and xs else (0, 1)
    high += high == low
    longest = max(xs, default=1) or 1
    ys = [0, 1] if measure == "map_at_3" else [0, *(row[measure] for _, row in given)]
    bottom, top = min(ys), max(ys)
    top += top == bottom
    points = [
        {
            "number": number,
            "x": (math.log10(row[takes]) - low) / (high - low) if log else row[takes] / longest,
            "y": (row[measure] - bottom) / (top - bottom),
            "low": row.get(f"{measure}_low"),
            "high": row.get(f"{measure}_high"),
            "said": f"{row.get('trial') or row['reader']}: {row[measure]:.3f}, {row[takes]:,.0f}",
        }
        for number, row in given
    ]
    ends = {"left": f"1e{low}", "right": f"1e{high}"} if log else {"left": "0", "right": f"{longest:.3g}"}
    return {"about": about, "top": f"{top:.3g}", "bottom": f"{bottom:.3g}", "points": points} | ends
