"""HTML fragments, and the page around them. What comes from models, labels and documents is escaped here.

A string is a text, which `tag` escapes, unless it is `Html`. So a text becomes markup only where code says so. A page
has everything in it: no file, script or address is loaded, and its first lines forbid it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from data.characters import whole_characters
from data.terminal import CONTROL
from eval.page.style import STYLE

TEXT_SHOWN = 240  # characters of a document
LABEL_SHOWN = 80  # of a label
SHORT_LABEL = 40  # beside a cell

# Marks that reorder the letters around them, which could show a label as another one; and line ends of Unicode.
_REORDERING = (0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)
_WRITTEN_OUT = CONTROL | {code: f"\\u{code:04x}" for code in _REORDERING}
_VOID = ("meta", "link", "br", "col")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_HEADING = re.compile(r'<section id="([^"]*)"><h2>(.*?)</h2>')


class Html(str):
    """Markup; all other strings are texts."""


def tag(name: str, /, *parts: str, **attributes: str) -> Html:
    """An element with these parts. ``class_`` and ``data_x`` are the attributes ``class`` and ``data-x``."""
    shown = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{shown}>" if name in _VOID else f"<{name}{shown}>{joined(*parts)}</{name}>")


def joined(*parts: str) -> Html:
    """Parts one after the other; those that are texts are escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def visible(text: str, limit: int = TEXT_SHOWN) -> str:
    """The beginning of a text, with control characters and those that reorder others written out."""
    return whole_characters(text[:limit]).translate(_WRITTEN_OUT)


def foreign(text: str, limit: int = TEXT_SHOWN, **attributes: str) -> Html:
    """A text of a model, a label or a document as it is, in the direction of its script.

    Of a long one the beginning, and how long it is.
    """
    more = tag("span", f" … ({len(text):,} characters)", class_="quiet") if len(text) > limit else Html()
    return joined(tag("bdi", visible(text, limit), dir="auto", **attributes), more)


def label(text: str) -> Html:
    """A label."""
    return foreign(text, LABEL_SHOWN, class_="label")


def short_label(text: str) -> Html:
    """The beginning of a label, where there is little space."""
    return tag("bdi", visible(text, SHORT_LABEL) + ("…" if len(text) > SHORT_LABEL else ""), dir="auto", class_="label")


def raw(text: str, limit: int = TEXT_SHOWN) -> Html:
    """An answer as a model wrote it, with its line breaks."""
    return foreign(text, limit, class_="raw") if text else tag("span", "(nothing)", class_="quiet")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> Html:
    """A table whose first column names the rows.

    Args:
        left: the columns of texts; those of numbers are aligned on the right.
    """

    def cells(names: Sequence[str], values: Sequence[str]) -> list[Html]:
        sides: list[dict[str, str]] = [{} if i in left else {"class_": "n"} for i in range(len(values))]
        return [tag(name, value, **side) for name, value, side in zip(names, values, sides, strict=True)]

    body = [tag("tr", *cells(["th", *["td"] * (len(row) - 1)], row)) for row in rows]
    top = tag("thead", tag("tr", *cells(["th"] * len(head), head)))
    return tag("div", tag("table", top, tag("tbody", *body)), class_="scroll")


def meter(share: float) -> Html:
    """A share as a percentage with a bar."""
    return tag("span", f"{share:.1%}", class_="meter", style=f"--share:{100 * share:.1f}%")


def details(summary: str, *parts: str) -> Html:
    """Parts that are shown on a click, and on paper."""
    return tag("details", tag("summary", summary), *parts)


def note(*parts: str) -> Html:
    """A paragraph in a quieter colour."""
    return tag("p", *parts, class_="quiet")


def further(n: int, what: str) -> str:
    """What is said of the rows of a table, ordered by F1, that follow after the first: ``5 more labels ...``."""
    return f"{n:,} more {what}{'' if n == 1 else 's'} with the same or a higher F1"


def legend(names: Mapping[str, str]) -> Html:
    """What the colours of a picture mean.

    Args:
        names: a name, which may be a user's, by the CSS variable of the colour, such as ``--right``.
    """
    chips = (
        tag("span", tag("i", style=f"background:var({colour})"), foreign(name, LABEL_SHOWN))
        for colour, name in names.items()
    )
    return tag("p", *chips, class_="legend")


def section(title: str, *parts: str, key: str = "") -> Html:
    """A part of a page with a heading, to which the page's list of contents leads.

    Args:
        key: its address in the page; default: the title's letters and digits.
    """
    key = key or re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
    return tag("section", tag("h2", foreign(title, LABEL_SHOWN)), *parts, id=key)


def omitted(title: str, why: str, key: str = "") -> Html:
    """A section that has nothing but the reason."""
    return section(title, note("Not shown: ", foreign(why, 1000)), key=key)


def start(program: str) -> str:
    """The first characters of the pages that a program writes, by which it knows its own.

    Args:
        program: such as ``python -m eval.page``.
    """
    return f"<!DOCTYPE html>\n<!-- made by {program}, which replaces this file when it makes the page again -->\n"


def page(title: str, sections: Sequence[str], program: str, top: str = "") -> str:
    """A complete page, which needs no other file.

    Args:
        title: a text.
        sections: markup, such as that of `section`.
        program: see `start`.
        top: markup between the title and the list of contents.
    """
    found = [match for part in sections for match in _HEADING.findall(part)]
    links = [tag("a", Html(re.sub("<[^>]*>", "", heading)), href=f"#{html.unescape(key)}") for key, heading in found]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", visible(title, LABEL_SHOWN)),
        tag("style", Html(STYLE)),
    )
    contents = tag("nav", *links, aria_label="Contents") if links else Html()
    header = tag("header", tag("h1", foreign(title)), Html(top), contents)
    body = tag("body", tag("main", header, *map(Html, sections)))
    return start(program) + tag("html", head, "\n", body, lang="en") + "\n"
