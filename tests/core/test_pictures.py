"""Pictures, masks and captions as people keep them."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_core.pictures import contents, read_folder, read_mask, read_picture

SIDE = 64


@pytest.fixture
def folder(tmp_path) -> Path:
    """One picture without a caption."""
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "robot.png")
    return tmp_path


def half_white(mode: str) -> Image.Image:
    """White on the left; nothing, which is black or transparent, on the right."""
    mask = Image.new(mode, (SIDE, SIDE))
    mask.paste("white", (0, 0, SIDE // 2, SIDE))
    return mask


def left_and_right(mask: Image.Image) -> tuple[int, int]:
    return mask.getpixel((SIDE // 4, SIDE // 2)), mask.getpixel((3 * SIDE // 4, SIDE // 2))


def start_of_png(width: int, height: int, chunk: bytes) -> bytes:
    """A grey PNG of this size until an empty chunk of this name."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, chunk)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class TestMasks:
    @pytest.mark.parametrize("name", ["robot.mask.png", "robot.mask.PNG", "robot.Mask.Png", "robot.mask.bmp"])
    def test_a_mask_is_one_whatever_its_suffix(self, folder, name):
        half_white("L").save(folder / name)
        (robot,) = read_folder(folder, "zib", SIDE)
        assert robot.name == "robot.png" and left_and_right(robot.mask) == (255, 0)

    def test_a_picture_without_a_mask_counts_everywhere(self, folder):
        half_white("L").save(folder / "robot.mask.png")
        Image.new("RGB", (SIDE, SIDE)).save(folder / "robot.2.jpg")
        second, first = read_folder(folder, "zib", SIDE)
        assert (first.name, second.name) == ("robot.png", "robot.2.jpg")
        assert first.mask is not None and second.mask is None

    @pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
    def test_what_is_transparent_does_not_count(self, folder, mode):
        half_white(mode).save(folder / "robot.mask.png")
        (robot,) = read_folder(folder, "zib", SIDE)
        assert left_and_right(robot.mask) == (255, 0)

    @pytest.mark.parametrize("mode", ["L", "RGBA"])
    def test_one_that_is_black_everywhere_is_refused(self, folder, mode):
        Image.new(mode, (SIDE, SIDE)).save(folder / "robot.mask.png")
        with pytest.raises(ValueError, match=r"robot.mask.png is black.*nothing of robot.png would be learnt.*Paint"):
            read_folder(folder, "zib", SIDE)

    def test_two_for_one_picture_are_refused(self, folder):
        for name in ("robot.mask.png", "robot.mask.jpg"):
            half_white("L").save(folder / name)
        with pytest.raises(ValueError, match=r"robot.mask.jpg and robot.mask.png are masks of one picture.*Remove"):
            read_folder(folder, "zib", SIDE)

    def test_one_without_a_picture_is_refused(self, folder):
        half_white("L").save(folder / "hat.MASK.JPG")
        with pytest.raises(ValueError, match=r"hat.MASK.JPG is a mask, but there is no picture hat beside it"):
            read_folder(folder, "zib", SIDE)


class TestPictures:
    def test_8_bits_are_read_as_they_are(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / "colours.png")
        Image.fromarray(values[..., 0]).save(tmp_path / "greys.png")
        assert (np.array(read_picture(tmp_path / "colours.png")) == values).all()
        assert (np.array(read_picture(tmp_path / "greys.png")) == values[..., :1]).all()
        assert (np.array(read_mask(tmp_path / "greys.png")) == values[..., 0]).all()

    def test_transparent_pictures_lie_on_white(self, tmp_path):
        Image.new("RGBA", (SIDE, SIDE)).save(tmp_path / "clear.png")
        assert read_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)

    @pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.uint16, "tiff"), (np.int32, "tiff")])
    def test_16_bits_are_scaled_to_8(self, tmp_path, dtype, suffix):
        values = np.arange(65536, dtype=dtype).reshape(256, 256)
        Image.fromarray(values).save(tmp_path / f"grey.{suffix}")
        expected = np.round(values / 257)[..., None].repeat(3, axis=2)
        assert (np.array(read_picture(tmp_path / f"grey.{suffix}")) == expected).all()

    @pytest.mark.parametrize("size", [(20_000, 10_000), (2**31 - 1, 2**31 - 1)])
    def test_more_pixels_than_can_be_are_refused(self, folder, size):
        (folder / "robot.png").write_bytes(start_of_png(*size, b"IDAT"))
        with pytest.raises(ValueError, match=r"robot.png can't be read as a picture: it is too large.*Scale it down"):
            read_folder(folder, "zib", SIDE)

    def test_many_pixels_are_no_reason_to_warn(self, folder, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_picture(folder / "robot.png").size == (SIDE, SIDE)

    def test_damaged_chunks_are_told_like_any_damage(self, folder):
        (folder / "robot.png").write_bytes(start_of_png(SIDE, SIDE, b"\xea/\x02\xee"))
        with pytest.raises(ValueError, match=r"robot.png can't be read as a picture: "):
            read_picture(folder / "robot.png")

    @pytest.mark.parametrize(("place", "value"), [(17, 8), (17, 85), (17, 27)])
    def test_a_damaged_exif_block_is_told_like_any_damage(self, folder, place, value):
        exif = Image.Exif()
        exif[0x010E], exif[0x0112] = (
            "hi",
            6,
        )  # a description, and the orientation that makes Pillow write all of it anew
        block = bytearray(exif.tobytes())
        Image.new("RGB", (SIDE, SIDE)).save(folder / "photo.jpg", exif=bytes(block))
        assert read_picture(folder / "photo.jpg").size == (SIDE, SIDE)
        block[place] = value  # the type of the description
        Image.new("RGB", (SIDE, SIDE)).save(folder / "photo.jpg", exif=bytes(block))
        with pytest.raises(ValueError, match=r"photo.jpg can't be read as a picture: "):
            read_picture(folder / "photo.jpg")


class TestCaptions:
    def caption(self, folder: Path, content: bytes, word: str | None = None) -> str:
        (folder / "robot.txt").write_bytes(content)
        (robot,) = read_folder(folder, word, SIDE)
        return robot.caption

    def test_is_what_the_file_says(self, folder):
        assert self.caption(folder, "a caf\u00e9,\n\u3042 \n".encode(), "zib") == "a caf\u00e9,\n\u3042"

    def test_the_mark_of_windows_notepad_is_no_part_of_it(self, folder):
        assert self.caption(folder, "a robot".encode("utf-8-sig")) == "a robot"

    @pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf"])
    def test_an_empty_file_leaves_it_to_the_word(self, folder, content):
        assert self.caption(folder, content, "zib") == "zib"
        with pytest.raises(ValueError, match=r"robot.png has no caption"):
            self.caption(folder, content)

    @pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
    def test_other_encodings_are_refused(self, folder, encoding):
        with pytest.raises(ValueError, match=r"robot.txt is not UTF-8: .*Save it as UTF-8"):
            self.caption(folder, "a caf\u00e9".encode(encoding), "zib")

    @pytest.mark.parametrize("name", ["robot.TXT", "robot.Txt"])
    def test_the_suffix_may_be_in_capitals(self, folder, name):
        (folder / name).write_text("a big robot")
        assert read_folder(folder, "zib", SIDE)[0].caption == "a big robot"
        (folder / "robot.txt").write_text("a small robot")
        assert read_folder(folder, "zib", SIDE)[0].caption == "a small robot"

    def test_brackets_in_a_name_are_no_pattern(self, folder):
        Image.new("RGB", (SIDE, SIDE)).save(folder / "robot [1].png")
        (folder / "robot 1.TXT").write_text("of another picture")
        (folder / "robot [1].TXT").write_text("of this one")
        assert [picture.caption for picture in read_folder(folder, "zib", SIDE)] == ["of this one", "zib"]


class TestContents:
    def test_one_picture(self, folder):
        assert contents(folder) == "1 picture, 0 with captions"

    def test_tells_what_is_left_out(self, folder):
        for name in ("2.png", "3.jpg", "robot.mask.png"):
            Image.new("RGB", (SIDE, SIDE)).save(folder / name)
        for name, text in (("robot.txt", "a robot"), ("2.TXT", "a robot"), ("3.txt", " "), ("4.txt", "of nothing")):
            (folder / name).write_text(text)
        assert contents(folder) == "3 pictures, 2 with captions, 1 with masks"
        (folder / "2.tif").touch()
        (folder / ".DS_Store").touch()
        (folder / "more").mkdir()
        assert contents(folder).endswith("1 with masks; skipped: 2.tif, more")
        for name in ("5.heic", "6.heic"):
            (folder / name).touch()
        assert contents(folder).endswith("skipped: 2.tif, 5.heic, 6.heic and 1 more")
