"""Check the parameters of a search, such as `nprobe=32`, which FAISS takes as text."""

import re

from sciqa.core.errors import InputError
from sciqa.retrieval.index_shards import empty_shards_index

#: Parameters whose number may have a fraction, and those that may be 0.
FRACTIONS, ZEROS = ("k_factor", "k_factor_rf"), ("ht", "max_codes", "verbose")


def check_search_parameters(manifest: dict, parameters: str | None) -> None:
    """Raise `InputError` if FAISS does not take the search parameters, or would compute nonsense with their values.

    They are tried on an empty index of the factory. FAISS takes any number, and finds one hit with `efSearch=0`.
    """
    if not parameters:
        return
    import faiss

    index = empty_shards_index(manifest["factory"], manifest["shards"][0]["dimension"], manifest["metric"])
    try:
        faiss.ParameterSpace().set_index_parameters(index, parameters)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise InputError(
            f"--search-parameters {parameters}: not taken by an index of --factory {manifest['factory']} "
            f"({str(error).rpartition(':')[2].strip()}); leave them out, or give those that FAISS has for it"
        ) from error
    for name, _, value in (part.partition("=") for part in re.split("[, ]+", parameters.strip(", "))):
        inner = name.removeprefix("quantizer_")
        form, least = r"\d+(\.\d+)?" if inner in FRACTIONS else r"\d+", 0 if inner in ZEROS else 1
        if not re.fullmatch(form, value) or not least <= float(value) < 1 << 31:
            raise InputError(f"--search-parameters {parameters}: {value} given for {name}, {least} or more expected")
