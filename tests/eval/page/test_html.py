"""Texts are escaped and shown as they are; a page is well formed and needs nothing else."""

from __future__ import annotations

import pytest

from eval.page.html import Html, details, foreign, joined, legend, meter, page, section, start, table, tag, visible
from tests.eval.page.runs import Read, check_harmless

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style></title><b>&amp;&lt;",
    "' onclick=alert(1) x='",
    "<!-- --><![CDATA[ ]]>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_escaped_wherever_they_are(text):
    parts = [
        tag("p", text, title=text, data_x=text),
        foreign(text), joined(text, Html("<br>"), text), details(text, text), table((text,), [(text,)]),
        section(text, text), legend({"--right": text}), meter(0.5),
    ]  # fmt: skip
    read = check_harmless(page(text, [section("x", *parts[:-3])] + parts[-3:-2], "me"))
    assert read.named("p")[0]["title"] == read.named("p")[0]["data-x"] == text
    assert read.text.count(text) >= 9


def test_only_html_is_markup():
    assert tag("p", "<b>", Html("<b>")) == "<p>&lt;b&gt;<b></p>"
    assert isinstance(tag("p"), Html) and tag("br") == "<br>"
    assert tag("td", class_="n", http_equiv="x") == '<td class="n" http-equiv="x"></td>'
    assert not isinstance(Html("<i>") + "<b>", Html), "a sum is a text again, and will be escaped"


def test_strange_characters_are_written_out():
    assert visible("a\0b\x1b[31mc\x7f\x9f") == r"a\x00b\x1b[31mc\x7f\x9f"
    assert visible("\n\t") == "\n\t"
    assert visible("gold\u202eevil\u2066x\u2028y") == r"gold\u202eevil\u2066x\u2028y"
    assert visible("\ud800a") == "\ufffda"
    assert visible("שלום 👩‍👩‍👧 مرحبا") == "שלום 👩‍👩‍👧 مرحبا"
    shown = Read(foreign("é" * 5000, 100))
    assert shown.texts == ["é" * 100, " … (5,000 characters)"]
    assert Read(foreign("شكرا")).elements == [("bdi", {"dir": "auto"})], "in the direction of its script"


def test_a_page_is_complete():
    parts = [section("One & two", "text"), section("שלום"), section("same", key="a"), section("same", key="b")]
    text = page("<title>", parts, "python -m me", top=tag("p", "top"))
    assert text.startswith(start("python -m me")) and start("python -m me") != start("python -m other")
    read = check_harmless(text)
    links = [attributes["href"] for attributes in read.named("a")]
    assert links == ["#one-two", "#שלום", "#a", "#b"] and read.text.count("One & two") == 2
    assert {attributes.get("name") for attributes in read.named("meta")} >= {"viewport", "color-scheme"}
    (policy,) = (m["content"] for m in read.named("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'") and "script" not in policy
    assert read.named("html") == [{"lang": "en"}] and "<title>" in read.texts
