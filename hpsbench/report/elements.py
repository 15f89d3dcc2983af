"""HTML and SVG as a tree of elements, so that what is shown is always escaped and well nested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias
from xml.etree import ElementTree

Element: TypeAlias = ElementTree.Element
#: A text, an element, or several of both; None is nothing.
Content: TypeAlias = "str | Element | Iterable[str | Element | None] | None"


def element(tag: str, *contents: Content, **attributes: object) -> Element:
    """Return an element; `class_` is the attribute class, `view_box` viewBox, `_` else a dash.

    An attribute that is None is left out, and a float is rounded to hundredths.
    """
    built = ElementTree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            built.set(_attribute(name), _text(value))
    for content in contents:
        _append(built, content)
    return built


def html_document(head: Element, body: Element) -> str:
    """Return a whole HTML page."""
    root = element("html", head, body, lang="en")
    return "<!doctype html>\n" + ElementTree.tostring(root, encoding="unicode", method="html")


def _append(parent: Element, content: Content) -> None:
    if content is None:
        return
    if isinstance(content, str):
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + content
        else:
            parent.text = (parent.text or "") + content
    elif isinstance(content, ElementTree.Element):
        parent.append(content)
    else:
        for part in content:
            _append(parent, part)


def _attribute(name: str) -> str:
    if name == "view_box":
        return "viewBox"
    return name.rstrip("_").replace("_", "-")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
