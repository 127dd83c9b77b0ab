"""What a trained file says of itself."""

from __future__ import annotations

import base64
import io

from PIL import Image

from sparse_core.training.metadata import THUMBNAIL, file_metadata


def test_captions_are_hashed_unless_their_owner_says_otherwise() -> None:
    private = file_metadata("fox", "fox", ["a fox in my garden"])
    public = file_metadata("fox", "fox", ["a fox in my garden"], keep_captions=True)
    assert "garden" not in str(private) and len(private["captions_sha256"]) == 1
    assert public["captions"] == ["a fox in my garden"] and public["captions_sha256"] == private["captions_sha256"]


def test_a_thumbnail_is_a_small_picture_that_any_program_can_show() -> None:
    uri = file_metadata("fox", thumbnail=Image.new("RGBA", (1024, 512), "orange"))["modelspec.thumbnail"]
    head, data = uri.split(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and picture.size == (THUMBNAIL, THUMBNAIL // 2)


def test_what_is_not_known_is_left_out() -> None:
    assert not {"modelspec.author", "modelspec.description", "modelspec.thumbnail"} & set(file_metadata("fox"))
