"""A page overwrites nothing but a page, and is there as a whole or not at all."""

from __future__ import annotations

import os

import pytest

from data.errors import UserError
from eval.page.html import page, start
from eval.page.output import check_output, write_page

PAGE = page("title", [], "me")


def test_a_page_of_the_same_program_is_replaced(tmp_path):
    path = tmp_path / "new" / "folders" / "report.html"
    for text in (PAGE, PAGE + "more"):
        check_output(path, "me")
        write_page(path, text)
        assert path.read_text(encoding="utf-8") == text and os.listdir(path.parent) == ["report.html"]
    path.write_text("")
    check_output(path, "me")


@pytest.mark.parametrize("content", ["notes", "<!DOCTYPE html>\n<p>mine", start("you")[:-1], "\0" * 999, start("you")])
def test_other_files_are_not(tmp_path, content):
    path = tmp_path / "report.html"
    path.write_text(content)
    with pytest.raises(UserError, match=r"report.html is a file that me did not make, and it would be overwritten"):
        check_output(path, "me")
    assert path.read_text() == content


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "out"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("nowhere")}[kind]()
    with pytest.raises(UserError, match="this is no file. Give the name of a file"):
        check_output(path, "me")


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write --output .*file/report.html: .* Give another --output."):
        check_output(tmp_path / "file" / "report.html", "me")
    path = tmp_path / "report.html"
    write_page(path, PAGE)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_page(path, PAGE + "more")
    assert path.read_text(encoding="utf-8") == PAGE and sorted(os.listdir(tmp_path)) == ["file", "report.html"]
