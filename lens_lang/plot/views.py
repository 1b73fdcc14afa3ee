"""Interactive views of text and attention: circuitsvis's elements, without a network.

circuitsvis's own output asks the internet at every display, or carries 1.3 MB of script with
every figure, and shows tokens as HTML. A `View` is data: an element and its properties, checked.
The script goes onto a page once, before or after the views; `save_views` writes such a page.
"""

import html
import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lens_lang.errors import ActivationError, OptionError, ShapeError, StorageError, near_misses
from lens_lang.storage import replacing


@dataclass(frozen=True)
class _Element:
    """What an element of circuitsvis takes.

    Attributes:
        values: Name of the property that goes with the tokens.
        token_axes: Axes of the tokens, which the values have too.
        axes: Further axes of the values, for every token.
        labels: Property of the labels of an axis of the values, by the axis.
        options: Further properties, each with what it must be.
    """

    values: str
    token_axes: int = 1
    axes: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, type] = field(default_factory=dict)


_COLOURS: Mapping[str, type] = {
    **dict.fromkeys(("minValue", "maxValue"), float),
    **dict.fromkeys(("negativeColor", "positiveColor"), str),
}
_ELEMENTS: Mapping[str, _Element] = {
    "AttentionHeads": _Element(
        "attention",
        labels={"attentionHeadNames": 0},
        options={**_COLOURS, "maskUpperTri": bool},
    ),
    "ColoredTokens": _Element("values", options={**_COLOURS, "paddingBottom": float}),
    "ColoredTokensMulti": _Element(
        "values",
        axes=1,
        labels={"labels": 1},
        options=dict.fromkeys(("positiveBounds", "negativeBounds"), list),
    ),
    "TextNeuronActivations": _Element(
        "activations",
        token_axes=2,
        axes=2,
        labels={"firstDimensionLabels": 2, "secondDimensionLabels": 3},
        options=dict.fromkeys(("firstDimensionName", "secondDimensionName"), str),
    ),
    "TopkSamples": _Element(
        "activations",
        token_axes=4,
        labels={"zerothDimensionLabels": 0, "firstDimensionLabels": 1},
        options=dict.fromkeys(("zerothDimensionName", "firstDimensionName"), str),
    ),
}

_WAITING = (
    "This view is drawn by a script, which is not on this page yet. In a notebook: trust the "
    "notebook, or show <code>lens_lang.plot.circuitsvis_script()</code> in a cell."
)
# Its own light panel, because the elements draw on white whatever the page's colours.
_PANEL = (
    "background:#fff;color:#111;color-scheme:light;padding:12px 14px;margin:12px 0;border:1px "
    "solid #d5d9e0;border-radius:6px;font:14px/1.5 system-ui,sans-serif;overflow-wrap:anywhere"
)
_HALVES = re.compile(r"[\ud800-\udfff]")
_CONTROLS = {**dict.fromkeys((*range(0x20), 0x7F), "\ufffd"), 0x9: "→", 0xA: "⏎\n"}


@dataclass(frozen=True, eq=False)
class View:
    """An interactive view: an element of circuitsvis and what it shows.

    In a notebook it shows itself. The script that draws comes with the first view of a kernel, and
    again when the cell that showed it runs again; later views use it. If that cell is changed so
    that it shows no view, or, where the notebook does not number its cells, changed at all, the
    page has lost the script: `circuitsvis_script` brings it back. ``str(view)`` is the view without
    the script.

    Attributes:
        element: AttentionHeads, ColoredTokens, ColoredTokensMulti, TextNeuronActivations or
            TopkSamples.
        props: Its properties, as circuitsvis names them: JSON values and tensors. Halves of
            surrogate pairs, which are no text, become replacement characters.
        title: What it shows, as a caption.

    Raises:
        OptionError: The element or a property is unknown, or a property is no JSON value, a token
            no text, a value no number.
        ShapeError: There are more values than tokens, or fewer.
        ActivationError: A value is NaN or infinite.

    Examples:
        >>> view = View("ColoredTokens", {"tokens": ["Le", " chat"], "values": [0.5, 2]}, "A cat")
        >>> view
        View(ColoredTokens: A cat)
        >>> len(str(view)) < 2000 < len(page_script())
        True
    """

    element: str
    props: Mapping[str, Any]
    title: str

    def __post_init__(self) -> None:
        if self.element not in _ELEMENTS:
            raise OptionError(
                f"A view shows no element {self.element!r}{near_misses(self.element, _ELEMENTS)}"
            )
        props = {name: _plain(value, name) for name, value in self.props.items()}
        _check_props(_ELEMENTS[self.element], props)
        object.__setattr__(self, "props", props)
        object.__setattr__(self, "title", _as_text(self.title))

    def to_html(self) -> str:
        """Return the view as HTML to put into a page that holds `page_script`, before or after."""
        return self._figure(f"<figcaption>{html.escape(self.title)}</figcaption>")

    def __str__(self) -> str:
        return self.to_html()

    def __repr__(self) -> str:
        return f"View({self.element}: {self.title})"

    def _repr_html_(self) -> str:
        return self.to_html() + (_script_tag() if _KERNEL.needs_script() else "")

    def _figure(self, caption: str) -> str:
        props = {**self.props, "tokens": _shown(self.props["tokens"])}
        content = json.dumps({"element": self.element, "props": props}, allow_nan=False)
        content = content.replace("<", "\\u003c")
        label = html.escape(self.title, quote=True)
        return (
            f'<figure class="lens-lang-view" tabindex="0" aria-label="{label}" style="{_PANEL}">'
            f'{caption}<div class="lens-lang-place"><p>{_WAITING}</p></div>'
            f'<script type="application/json">{content}</script></figure>'
            "<script>window.lensLangViews?.draw()</script>\n"
        )


class _PageScript:
    def _repr_html_(self) -> str:
        _KERNEL.note_script()
        return _script_tag()


def circuitsvis_script() -> _PageScript:
    """Return the script that draws views; shown in a cell, it draws all views that wait for it.

    Only needed where the cell of the first view was deleted, cleared or changed, or in a notebook
    that was opened again.
    """
    return _PageScript()


def page_script() -> str:
    """Return the JavaScript that draws the views of a page, ready to stand in a ``<script>``.

    Raises:
        StorageError: circuitsvis is not installed as it should be.
    """
    return _bundle() + files("lens_lang.plot").joinpath("views.js").read_text(encoding="utf-8")


def _page(views: Sequence[View], *, title: str = "Views") -> str:
    """Return views as one HTML page that needs nothing else.

    Args:
        views: The views, in order.
        title: The page's heading.
    """
    parts = [
        f"<section><h2>{html.escape(view.title)}</h2>\n{view._figure('')}</section>"
        for view in views
    ]
    return _PAGE.format(
        policy=_POLICY, title=html.escape(title), views="\n".join(parts), script=page_script()
    )


def save_views(path: str | Path, views: Sequence[View], *, title: str = "Views") -> None:
    """Write views to one HTML page that opens without a network.

    Args:
        path: The file.
        views: The views, in order.
        title: The page's heading.

    Raises:
        OptionError: There is no view, or something else than a view.
        StorageError: The file cannot be written.
    """
    given: list[Any] = list(views) if isinstance(views, Iterable) else [views]
    wrong = [type(each).__name__ for each in given if not isinstance(each, View)]
    if isinstance(views, View):
        wrong = ["one View: write [view]"]
    if wrong or not given:
        raise OptionError(f"save_views takes a list of views, got {wrong[0] if wrong else 'none'}")
    content = _page(given, title=_as_text(title))
    with replacing(path) as part:
        part.write_text(content, encoding="utf-8")


class _Kernel:
    """Where this process has put the script: with which cell, and at which execution of it."""

    def __init__(self) -> None:
        self.cell: tuple[str, str] | None = None

    def needs_script(self) -> bool:
        """Whether the view about to be shown must bring the script; notes that it does."""
        cell, execution = self._running()
        first = self.cell is None
        again = bool(cell) and self.cell is not None and self.cell[0] == cell
        again = again and self.cell != (cell, execution)
        # Colab shows every output on a page of its own.
        needed = first or again or "google.colab" in sys.modules
        if needed:
            self.cell = (cell, execution)
        return needed

    def note_script(self) -> None:
        """Note that the running cell shows the script."""
        self.cell = self._running()

    def _running(self) -> tuple[str, str]:
        """The running cell and the execution, as far as Jupyter tells; empty outside of it."""
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        request: Mapping[str, Any] = getattr(shell, "get_parent", dict)() or {}
        # Not every front end numbers its cells; then a cell is what it says.
        cell = request.get("metadata", {}).get("cellId") or request.get("content", {}).get("code")
        return str(cell or ""), str(request.get("header", {}).get("msg_id", ""))


_KERNEL = _Kernel()


def _bundle() -> str:
    # Not by importing circuitsvis, which takes seconds.
    spec = find_spec("circuitsvis")
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        file = Path(folder) / "dist" / "cdn" / "iife.js"
        if file.is_file():
            source = file.read_text(encoding="utf-8")
            # The map would be asked for; the end of a script stands in a string of React's.
            source = re.sub(r"^//# sourceMappingURL=.*$", "", source, flags=re.MULTILINE)
            return source.replace("</script", "<\\/script") + "\n"
    raise StorageError("circuitsvis has no dist/cdn/iife.js: install circuitsvis 1.43 or later")


def _script_tag() -> str:
    return f"<script>{page_script()}</script>\n"


def _plain(value: Any, where: str) -> Any:
    """A property as JSON values, finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{number}]") for number, each in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ActivationError(f"A view cannot show {value} ({where}): give finite values")
    if isinstance(value, str):
        return _as_text(value)
    if isinstance(value, bool | int | float):
        return value
    raise OptionError(f"{where} of a view must be JSON, got {type(value).__name__}")


def _as_text(text: str) -> str:
    """Text without halves of surrogate pairs, which no file can hold."""
    return _HALVES.sub("\ufffd", text)


def _check_props(element: _Element, props: Mapping[str, Any]) -> None:
    """Refuse values that do not stand beside the tokens one by one, and labels too few or many."""
    for needed in ("tokens", element.values):
        if needed not in props:
            raise ShapeError(f"A view needs the property {needed}, got {', '.join(props)}")
    _check_kinds(element, props)
    tokens, values = props["tokens"], props[element.values]
    if element.values == "attention":
        shape = _shape(values, element.values)
        if _shape(tokens, "tokens") * 2 != shape[1:]:
            raise ShapeError(
                f"attention must be heads x {len(tokens)} x {len(tokens)}, as there are tokens, "
                f"got {_told(shape)}"
            )
    else:
        shape = _beside(tokens, values, element, element.values)
    for name, axis in element.labels.items():
        if name in props and len(props[name]) != shape[axis]:
            raise ShapeError(f"{name} must be {shape[axis]} labels, got {len(props[name])}")


def _check_kinds(element: _Element, props: Mapping[str, Any]) -> None:
    """Refuse properties that the element does not have, and what is not of their kind."""
    known = ["tokens", element.values, *element.labels, *element.options]
    for name, value in props.items():
        if name not in known:
            raise OptionError(f"This element has no property {name!r}{near_misses(name, known)}")
        kind = element.options.get(name, list)
        if kind is float:
            _check_leaves([value], float, name)
        elif not isinstance(value, kind):
            raise OptionError(f"{name} must be a {kind.__name__}, got {value!r}")
        elif isinstance(value, list):
            named = name == "tokens" or name in element.labels
            _check_leaves(value, str if named else float, name)


def _check_leaves(value: list[Any], kind: type, where: str) -> None:
    for each in value:
        if isinstance(each, list):
            _check_leaves(each, kind, where)
        elif kind is str and not isinstance(each, str):
            raise OptionError(f"{where} must be text, got {each!r}")
        elif kind is float and (isinstance(each, bool) or not isinstance(each, int | float)):
            raise OptionError(f"{where} must be numbers, got {each!r}")


def _beside(
    tokens: Any, values: Any, element: _Element, where: str, axis: int = 0
) -> tuple[int, ...]:
    """The shape of values that fit their tokens; samples may differ in length."""
    if axis == element.token_axes - 1:
        shape, names = _shape(values, where), _shape(tokens, "tokens")
        if len(names) != 1 or shape[:1] != names or len(shape) != 1 + element.axes:
            raise ShapeError(
                f"{where} must have a value of {element.axes} axes for each of {_told(names)} "
                f"tokens, got the shape {_told(shape)}"
            )
        return shape
    if not isinstance(tokens, list) or not isinstance(values, list) or not tokens:
        raise ShapeError(f"tokens and {where} must be lists of lists, and not empty")
    if len(tokens) != len(values):
        raise ShapeError(
            f"{where} must be {len(tokens)} long, as the tokens are, got {len(values)}"
        )
    shapes = [
        _beside(some, beside, element, f"{where}[{number}]", axis + 1)
        for number, (some, beside) in enumerate(zip(tokens, values, strict=True))
    ]
    last = element.token_axes - 2 - axis  # of a shape below: how many tokens, which may differ
    for number, shape in enumerate(shapes):
        if (shape[:last], shape[last + 1 :]) != (shapes[0][:last], shapes[0][last + 1 :]):
            raise ShapeError(f"{where}[{number}] has other axes than {where}[0]")
    return (len(tokens), *shapes[0])


def _told(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"


def _shape(values: Any, where: str) -> tuple[int, ...]:
    """The shape of nested lists, which must be as long as each other, and not empty."""
    if not isinstance(values, list):
        return ()
    shapes = {_shape(each, where) for each in values}
    if len(shapes) != 1:
        raise ShapeError(f"{where} is {'ragged' if shapes else 'empty'}: it needs one shape")
    return (len(values), *shapes.pop())


def _shown(tokens: Any) -> Any:
    r"""Tokens as the elements can show them, which put them into the page as HTML.

    An invisible word joiner behind ``<`` and ``&`` makes these mere characters.

    Examples:
        >>> _shown(["a\n", " ", "<b>"])
        ['a⏎\n', '␣', '<\u2060b>']
    """
    if isinstance(tokens, list):
        return [_shown(each) for each in tokens]
    if all(unicodedata.category(letter) == "Cf" for letter in tokens):  # joiners, marks of order
        return " ".join(f"U+{ord(letter):04X}" for letter in tokens) or "␣"
    text = tokens.translate(_CONTROLS).replace("<", "<\u2060").replace("&", "&\u2060")
    return text if text.strip() else "␣" * len(text)


# Nothing from anywhere else, whatever a token says.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }}
section {{ margin: 2rem 0; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.15rem; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #14171c; color: #e6e8eb; }} }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{views}
</main>
<noscript><p>These views need JavaScript.</p></noscript>
<script>
{script}
</script>
</body>
</html>
"""
