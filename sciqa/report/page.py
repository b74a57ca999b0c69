"""Pages of reports: one HTML file each, with its style and script in it, that needs no network."""

from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, select_autoescape

from sciqa import __version__
from sciqa.report.texts import report_formulas_as_html


def render_page(template: str, **values: object) -> bytes:
    """Return a page as UTF-8, by a template of this package, which also has `made` (time) and `version` (of sciqa)."""
    environment = Environment(
        loader=PackageLoader("sciqa.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    environment.filters["readable"] = report_formulas_as_html
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return environment.get_template(template).render(made=made, version=__version__, **values).encode()
