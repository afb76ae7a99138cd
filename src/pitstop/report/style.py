"""How the figures look: one accent colour, one size, a font that can draw the words. And the three files of each."""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from pitstop.report.words import Words

INK, MUTED, RULE, ACCENT, PAPER = "#1c1b19", "#6f6b64", "#dcd8d0", "#b0431e", "#fefefe"
# In the page the same colours are CSS variables, which follow the reader's light or dark.
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", PAPER: "--paper"}
WIDTH_INCHES = 7.2
SCALE = 1.42  # pixels of the page for a point of the figure: 9 pt are read as 13 px
CJK = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
CJK_FILES = re.compile(  # the usual ones of Linux, Windows and macOS
    r"(NotoSans(Mono)?CJK|NotoSansSC|SourceHanSans|wqy-|simhei|msyh|PingFang|Hiragino|DroidSansFallback|ukai|uming)",
    re.IGNORECASE,
)
# The files of each figure, with their metadata: no dates, so that the same run gives the same files.
KINDS: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
NOTHING: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}


@dataclass(frozen=True)
class Text:
    """Words and class names as a figure shows them."""

    words: Words
    classes: tuple[str, ...]


def cjk_font() -> str | None:
    """The name of a font of this machine that draws Chinese; None where there is none. Looked for by file, because
    matplotlib's own list is as old as its cache."""
    for path in sorted(
        font_manager.findSystemFonts(), key=lambda path: ("Noto" not in path, "Regular" not in path, path)
    ):
        if CJK_FILES.search(Path(path).name):
            font_manager.fontManager.addfont(path)
            return str(font_manager.FontProperties(fname=path).get_name())
    return None


def _letters(families: Iterable[str]) -> set[str]:
    """Those that these fonts can draw; what is not seen is drawn by none."""
    paths = [font_manager.findfont(family) for family in families]
    seen = {chr(code) for path in paths for code in font_manager.get_font(path).get_charmap()}
    return seen | {"\n", "\t", "\r"}


Draw = Callable[[Text], Figure]


class Press:
    """Prints figures: as SVG, PDF and PNG into a folder, and as SVG for the page.

    Attributes:
        whole: for the page, whose words the browser draws.
        safe: for the files: in English, with numbers for names, where this machine has no font for the others.
        lacks_font: for Chinese; lacks_letters: of the names of the classes.
    """

    def __init__(self, folder: Path, words: Words, classes: tuple[str, ...]) -> None:
        self._folder = folder
        needed = words.language == "zh" or any(CJK.search(name) for name in classes)
        self._font = cjk_font() if needed else None
        self.whole = Text(words, classes)
        self.lacks_font = needed and self._font is None
        self.lacks_letters = not set("".join(classes)) <= _letters(
            ["DejaVu Sans", *([self._font] if self._font else [])]
        )
        if self.lacks_font or self.lacks_letters:
            numbered = tuple(str(index) for index in range(len(classes))) if self.lacks_letters else classes
            self.safe = Text(Words("en") if self.lacks_font else words, numbered)
        else:
            self.safe = self.whole

    def files(self, name: str, draw: Draw, kinds: Iterable[str] | None = None) -> None:
        """<name>.svg, .pdf and .png, or some of these."""
        self._save(name, self._laid_out(draw, self.safe), KINDS if kinds is None else kinds)

    def both(self, name: str, draw: Draw, label: str) -> str:
        """The files, and an <svg> element for the page, whose text is text and whose colours follow the page's;
        `label` is what a screen reader says."""
        figure = self._laid_out(draw, self.safe)
        self._save(name, figure, KINDS)
        if self.safe is not self.whole:
            figure = self._laid_out(draw, self.whole)
        file = io.StringIO()
        with self._style({"svg.fonttype": "none", "svg.hashsalt": name}), _foreign_glyphs():
            figure.savefig(file, format="svg", transparent=True, metadata=NOTHING)
        return _for_the_page(file.getvalue(), name, label)

    def _laid_out(self, draw: Draw, text: Text) -> Figure:
        """The layout is found once, not anew for each file."""
        with self._style({}), nullcontext() if text is self.safe else _foreign_glyphs():
            figure = draw(text)
            figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return figure

    def _save(self, name: str, figure: Figure, kinds: Iterable[str]) -> None:
        with self._style({"svg.fonttype": "path", "svg.hashsalt": name}):
            for kind in kinds:
                figure.savefig(self._folder / f"{name}.{kind}", metadata=KINDS[kind])

    @contextmanager
    def _style(self, more: dict[str, Any]) -> Iterator[None]:
        family = ["DejaVu Sans", *([self._font] if self._font else [])]
        # Such a font may have no bold, and be of a kind (CFF) that matplotlib embeds wrongly as TrueType.
        careful = {"axes.titleweight": "normal", "pdf.fonttype": 3} if self._font else {}
        with matplotlib.rc_context(STYLE | {"font.family": family} | careful | more):
            yield


@contextmanager
def _foreign_glyphs() -> Iterator[None]:
    """The browser has the characters that this machine's fonts may lack: no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


def _for_the_page(svg: str, name: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)  # several figures stand on one page
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    size = re.search(r'width="([\d.]+)pt" height="[\d.]+pt" ', svg)
    assert size is not None, "matplotlib gives every SVG a size"
    width = float(size[1])  # points; the page shows it larger, and a narrow screen scrolls rather than shrinks it
    look = f"width:{SCALE * width:.0f}px;max-width:100%;min-width:{width:.0f}px"
    svg = svg.replace(size[0], "", 1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(label)}" style="{look}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
