"""The cells of a file's columns: looked up by name or path, lists and objects within texts parsed."""

import ast
import json
import re

from sciqa.exam.exam_files import parse_exam_file_json

#: A text in quotes, in Python syntax.
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def find_column_cell(cells: dict[str, object], path: str) -> object:
    """Return the cell of a column, or the value at a path into its fields; None if there is none."""
    if path in cells or "." not in path:
        return cells.get(path)
    name, _, rest = path.partition(".")
    cell = structured_column_cell(cells.get(name))
    if isinstance(cell, list):
        return [find_column_cell(each, rest) if isinstance(each, dict) else None for each in cell]
    return find_column_cell(cell, rest) if isinstance(cell, dict) else None


def structured_column_cell(cell: object) -> object:
    """Return a cell; text that holds a list or an object, in JSON or Python syntax, is parsed.

    A text in which a key stands twice is left as it is, since a value would be lost.
    """
    if not isinstance(cell, str) or cell.lstrip()[:1] not in ("[", "{"):
        return cell
    try:
        parsed = parse_exam_file_json(cell.strip())
    except json.JSONDecodeError:
        parsed = _python_literal(cell.strip())
    except ValueError:
        return cell
    return parsed if isinstance(parsed, list | dict) else cell


def _python_literal(text: str) -> object:
    """Return the value of a Python literal; None if it is none, repeats a key, or has texts without a comma between.

    Python joins such texts, which are how numpy prints an array (`['tin' 'zinc']`).
    """
    try:
        tree = ast.parse(text, mode="eval")
        parsed = ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    keys = [[ast.unparse(key) for key in node.keys if key] for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    joined = re.search(r"''\s*''", QUOTED.sub("''", text))
    return None if joined or any(len(set(each)) < len(each) for each in keys) else parsed
