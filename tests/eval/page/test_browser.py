"""A page in a browser: it runs no script and loads nothing, whatever is in it, and a study's table fits on a screen."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.example import Example
from data.tasks import ClassField, Task
from eval.page.report import report
from eval.page.style import STYLE
from tests.eval.page.runs import predicted, scored
from tests.launching import ROOT

NAMES = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
SCRIPT = "<script>document.title='ran'</script><img src='http://far.example/x.png' onerror=\"document.title='ran'\">"
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--virtual-time-budget=3000",
         "--window-size=1280,900")  # fmt: skip


class Web:
    """Stands for all of the web: a proxy that notes what a browser asks for, and has none of it."""

    def __init__(self) -> None:
        asked = self.asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            do_CONNECT = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def open(self, path) -> str:
        """The document that the browser has in the end."""
        proxy = f"--proxy-server=http://127.0.0.1:{self.server.server_port}"
        command = [BROWSER, *QUIET, proxy, "--proxy-bypass-list=<-loopback>", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout


@pytest.fixture
def web():
    if BROWSER is None:
        pytest.skip(f"no browser ({', '.join(NAMES)}): on Debian, apt-get install chromium-headless-shell")
    web = Web()
    yield web
    web.server.shutdown()


def test_the_browser_would_run_and_load(web, tmp_path):
    """So that the test below can fail."""
    (tmp_path / "bad.html").write_text(f"<!DOCTYPE html><title>quiet</title>{SCRIPT}")
    assert "<title>ran</title>" in web.open(tmp_path / "bad.html")
    assert "http://far.example/x.png" in web.asked


def test_a_page_runs_and_loads_nothing(web, tmp_path):
    labels = (SCRIPT, "glad", f'"{SCRIPT}', "</style>" + SCRIPT, "</svg>" + SCRIPT)
    task = Task("mine", "custom", (ClassField("m" + SCRIPT, labels), ClassField("n", labels)))
    gold = [dict.fromkeys((field.name for field in task.fields), labels[i % 5]) for i in range(60)]
    examples = [Example(f"{i}{SCRIPT}", SCRIPT, own) for i, own in enumerate(gold)]
    predictions = [
        predicted(task, example, task.write(example.labels) if i % 2 else SCRIPT, n_prompt_tokens=i + 1)
        for i, example in enumerate(examples)
    ]
    page = report(scored(tmp_path / "run", task, examples, predictions, system=SCRIPT, data=SCRIPT))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    shown = web.open(tmp_path / "page.html")
    assert "<svg" in shown and "<title>&lt;script&gt;" in shown and "<script" not in shown and "<img" not in shown
    assert web.asked == []


def test_the_table_of_the_paper_needs_no_scrolling(web, tmp_path):
    """All its columns, with three seeds and drawn intervals, on a screen of 1,280 points."""
    page = (ROOT / "benchmarks/results/miniature.html").read_text(encoding="utf-8")
    page, n = re.subn("<style>.*?</style>", lambda _: f"<style>{STYLE}</style>", page, flags=re.DOTALL)
    page, m = re.subn("<meta[^>]*Content-Security-Policy[^>]*>", "", page)  # it lets no script run
    assert n == m == 1
    measure = "const all = [...document.querySelectorAll('.scroll')].map(one => one.scrollWidth - one.clientWidth);"
    (tmp_path / "page.html").write_text(f"{page}<script>{measure} document.title = all</script>", encoding="utf-8")
    title = re.search("<title>(.*?)</title>", web.open(tmp_path / "page.html"))
    assert title is not None
    figures, counts, *_ = map(int, title[1].split(","))
    assert figures == 0 < counts, "that of all counts has fifteen columns"
