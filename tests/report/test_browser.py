"""The report in a real browser: it renders, complains of nothing, asks nobody for anything."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_runs import write_predictions, write_run
from PIL import Image

from pitstop.report.make import make

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
OWN = re.compile(r"https?://[\w.-]+\.google(apis)?\.com/")  # what the browser asks for itself, whatever the page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")]


@dataclass(frozen=True)
class Seen:
    dom: str
    console: list[str]
    requests: set[str]


def browse(page: Path, folder: Path, *words: str) -> Seen:
    assert BROWSER is not None
    log = folder / "network.json"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={folder / 'profile'}",
               "--enable-logging=stderr", f"--log-net-log={log}", *(words or ["--dump-dom"])]  # fmt: skip
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    asked = set(re.findall(r'"url":"((?!file:|data:)[^"]+)"', log.read_text()))
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(done.stdout, console, {url for url in asked if not OWN.match(url)})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "run")
    write_predictions(run, ["飞机", "<b>dog</b>", "frog"])
    return make(run)


def test_it_renders_and_asks_for_nothing(page: Path, tmp_path: Path) -> None:
    seen = browse(page, tmp_path)
    accuracy = re.search(r'"accuracy": ([\d.]+)', (page.parent / "summary.json").read_text().split('"predictions"')[1])
    assert accuracy is not None
    assert f"{100 * float(accuracy[1]):.2f}&nbsp;%" in seen.dom.partition("<body")[2]
    assert "飞机" in seen.dom
    assert seen.dom.count("<svg") == 5
    assert seen.console == []
    assert seen.requests == set()


def test_the_test_sees_what_it_must(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src=http://127.0.0.1:9/x.png><script>console.error('oh')</script>")
    seen = browse(page, tmp_path)
    assert len(seen.console) == 1
    assert seen.requests == {"http://127.0.0.1:9/x.png"}


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(page: Path, tmp_path: Path, dark: bool) -> None:
    picture = tmp_path / "page.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(page, tmp_path, *scheme, "--window-size=500,900", f"--screenshot={picture}")
    with Image.open(picture) as image:
        corner = image.convert("L").getpixel((2, 2))
        shades = len(set(image.convert("L").tobytes()))
    assert isinstance(corner, int)
    assert corner < 40 if dark else corner > 240
    assert shades > 30, "there is something on the page"


def test_it_prints(page: Path, tmp_path: Path) -> None:
    browse(page, tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    assert 3 <= (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n") <= 20
