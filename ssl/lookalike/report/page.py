"""HTML pages: templates in which every text is escaped, and which load nothing from elsewhere."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lookalike.errors import RecipeError, printable
from lookalike.report import tiles


def refuse_other(path: Path, what: str) -> None:
    """Raises RecipeError, saying `what` is shown, for a path that ends neither in .png nor in
    .html.
    """
    if path.suffix.lower() not in (".png", ".html"):
        raise RecipeError(f"{printable(path)}: {what} a .png or an .html: name it so")


def render(template: str, **values: Any) -> bytes:
    """The page that a file of templates/ makes of these values; one of them is the `title`."""
    return _PAGES.get_template(template).render(values).encode()


def _visible(value: Any) -> Any:
    """A text with its control characters and stray bytes as escapes; markup as it is."""
    as_it_is = hasattr(value, "__html__") or str(value).isprintable()
    return value if as_it_is else printable(str(value))


_PAGES = Environment(
    loader=PackageLoader("lookalike.report"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_visible,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters["data_url"] = tiles.data_url
