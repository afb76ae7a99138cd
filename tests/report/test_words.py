"""Both languages say the same."""

import re
from string import Formatter

from pitstop.report.words import WORDS, Words


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_chinese_is_complete() -> None:
    for key, (english, chinese) in WORDS.items():
        assert fields(english) == fields(chinese), key
        assert english == chinese == "F1" or re.search("[\u4e00-\u9fff\uff1a]", chinese), key
        assert not re.search("[\u4e00-\u9fff]", english), key


def test_a_word_in_both() -> None:
    assert Words("en")("no_cam", why="{x}") == "No Grad-CAM: {x}"
    assert "{x}" in Words("zh")("no_cam", why="{x}")
