import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hemlearn.data.preprocess import resize_square
from hemlearn.data.readers import reader_for, register, suffixes, to_display
from hemlearn.data.readers.image import read_image
from hemlearn.data.scan import file_facts
from hemlearn.util.errors import ConfigError, DataError
from tests.data.heads import head, save, tiff

GREY = head(1, 40, 30)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_grey_is_read_as_it_is(tmp_path: Path) -> None:
    read = read_image(save(tmp_path / "a.png", GREY))
    assert read.dtype == np.uint8
    assert np.array_equal(read, GREY)


def test_rgb_and_palette_become_luminance(tmp_path: Path) -> None:
    colour = np.stack([GREY, GREY // 2, GREY // 3], axis=-1)
    expected = np.rint(colour @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(read_image(save(tmp_path / "rgb.png", colour)) - expected).max() <= 1
    Image.fromarray(GREY).convert("P").save(tmp_path / "p.png")
    assert np.array_equal(read_image(tmp_path / "p.png"), GREY)


def test_transparency_lies_on_black(tmp_path: Path) -> None:
    alpha = np.full_like(GREY, 255)
    alpha[:20] = 0
    rgba = np.stack([np.full_like(GREY, 200)] * 3 + [alpha], axis=-1)
    read = read_image(save(tmp_path / "rgba.png", rgba))
    assert read[:20].max() == 0
    assert (read[20:] == 200).all()
    palette = Image.fromarray(GREY).convert("P")
    palette.save(tmp_path / "p.png", transparency=255)  # the white skull made transparent
    assert read_image(tmp_path / "p.png")[GREY == 255].max() == 0


def test_an_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned by 90 degrees
    Image.fromarray(GREY).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(GREY, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_shows_what_viewers_show(tmp_path: Path, orientation: int) -> None:
    stored = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY),
        7: GREY[::-1, ::-1].T,
        8: np.rot90(GREY, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), GREY)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1])
def test_zero_is_white_where_a_tiff_says_so(tmp_path: Path, bits: int, photometric: int) -> None:
    levels = GREY >> (8 - bits)
    most = 2**bits - 1
    path = tiff(tmp_path / "a.tif", levels if photometric else most - levels, photometric, bits)
    assert np.array_equal(read_image(path), np.rint(levels * (255 / most)))


def test_a_tiff_that_says_white_is_zero_of_values_with_black_at_zero_is_put_right(tmp_path: Path) -> None:
    assert np.array_equal(read_image(tiff(tmp_path / "a.tif", GREY, 0)), GREY)
    Image.fromarray(255 - GREY).save(tmp_path / "b.tif", tiffinfo={262: 0})  # Pillow inverts what it writes so
    assert np.array_equal(read_image(tmp_path / "b.tif"), GREY)


def test_a_reversed_palette_cmyk_and_single_bits_show_the_same_head(tmp_path: Path) -> None:
    reversed_ = Image.frombytes("P", (30, 40), (255 - GREY).tobytes())
    reversed_.putpalette([255 - level for level in range(256) for _ in range(3)])
    for suffix in ("png", "tif", "gif", "bmp"):
        reversed_.save(tmp_path / f"p.{suffix}")
        assert np.array_equal(read_image(tmp_path / f"p.{suffix}"), GREY)
    Image.fromarray(GREY).convert("CMYK").save(tmp_path / "c.tif")
    assert np.array_equal(read_image(tmp_path / "c.tif"), GREY)
    Image.fromarray(GREY).convert("LA").save(tmp_path / "la.png")
    assert np.array_equal(read_image(tmp_path / "la.png"), GREY)


def test_a_picture_too_large_to_unpack_is_refused_by_its_header(tmp_path: Path) -> None:
    for name, side in (("a.png", 9000), ("b.png", 60_000)):
        start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        (tmp_path / name).write_bytes(start + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b""))
        with pytest.raises(DataError, match="too large for a slice"):
            read_image(tmp_path / name)
    found = file_facts(["a.png", "b.png"], tmp_path, n_jobs=1, cache_dir=None, progress=False)
    assert found["reason"].iloc[0] == ""
    assert "decompression bomb" in found["reason"].iloc[1]


def bad_files(folder: Path) -> dict[str, tuple[Path, list[str]]]:
    whole = save(folder / "whole.png", head(2, 200, 200)).read_bytes()
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    save(folder / "whole.jpg", head(2, 200, 200))
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:1500])
    (folder / "text.png").write_text("not pixels")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    (folder / "damaged.png").write_bytes(bytes(damaged))
    save(folder / "one.png", np.zeros((1, 1), np.uint8))
    save(folder / "narrow.png", np.zeros((200, 7), np.uint8))
    Image.fromarray(GREY.astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(GREY.astype(np.float32)).save(folder / "float.tif")
    frames = [Image.fromarray(head(seed, 40, 30)) for seed in range(3)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "film.png", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    return {
        "missing": (folder / "none.png", ["No such file"]),
        "zero-byte": (folder / "empty.png", ["empty file", "0 bytes"]),
        "truncated png": (folder / "cut.png", ["truncated image"]),
        "truncated jpeg": (folder / "cut.jpg", ["truncated image"]),
        "no image": (folder / "text.png", ["not an image"]),
        "damaged": (folder / "damaged.png", ["damaged image"]),
        "1 x 1": (folder / "one.png", ["too small", "1 x 1", "8 x 8"]),
        "narrow": (folder / "narrow.png", ["too small", "7 x 200"]),
        "16-bit": (folder / "deep.png", ["ambiguous pixel scale", "I;16", "8-bit PNG"]),
        "float": (folder / "float.tif", ["ambiguous pixel scale", "F"]),
        "gif": (folder / "film.gif", ["animated", "3 frames"]),
        "apng": (folder / "film.png", ["animated", "3 frames"]),
        "pages": (folder / "pages.tif", ["several pages", "3 frames"]),
        "signed": (tiff(folder / "signed.tif", GREY, 1, sample_format=2), ["ambiguous pixel scale", "signed"]),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "zero-byte",
        "truncated png",
        "truncated jpeg",
        "no image",
        "damaged",
        "1 x 1",
        "narrow",
        "16-bit",
        "float",
        "gif",
        "apng",
        "pages",
        "signed",
    ],
)
def test_unusable_images_are_refused(tmp_path: Path, kind: str) -> None:
    path, parts = bad_files(tmp_path)[kind]
    with pytest.raises(DataError) as caught:
        read_image(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_sixteen_bit_colour_is_not_reduced_silently(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + np.full((20, 3), 4000, ">u2").tobytes() for _ in range(20))
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0))
    (tmp_path / "rgb16.png").write_bytes(png + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b""))
    with pytest.raises(DataError, match="ambiguous pixel scale"):
        read_image(tmp_path / "rgb16.png")


def test_letterbox_keeps_the_aspect_and_pads_with_air() -> None:
    out = resize_square(np.full((40, 80), 1000, np.int16), 20, "letterbox", -1000)
    assert out.dtype == np.int16
    assert (out[5:15] == 1000).all()
    assert (out[:5] == -1000).all()
    assert (out[15:] == -1000).all()


def test_squash_uses_all_and_crop_the_centre() -> None:
    wide = np.zeros((40, 80), np.uint8)
    wide[:, 20:60] = 200
    assert (resize_square(wide, 20, "crop", 0) == 200).all()
    squashed = resize_square(wide, 20, "squash", 0)
    assert (squashed[:, 5:15] == 200).all()
    assert squashed[:, :5].max() == 0


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))
    assert (resize_square(stripes, 16, "squash", 0) == 100).all()


def test_growing_interpolates() -> None:
    ramp = np.tile(np.array([0] * 8 + [100] * 8, np.int16), (16, 1))
    grown = resize_square(ramp, 64, "squash", 0)
    assert len(np.unique(grown)) > 2
    assert grown.min() == 0
    assert grown.max() == 100


def test_an_unknown_fit_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.fit is 'stretch'"):
        resize_square(GREY, 10, "stretch", 0)


def test_the_reader_follows_the_longest_ending(tmp_path: Path) -> None:
    assert reader_for("A/B.PNG").unit == "display"
    with pytest.raises(DataError, match=r"scan\.docx: unknown kind of file") as caught:
        reader_for(tmp_path / "scan.docx")
    assert ".png" in caught.value.remedy
    with pytest.raises(DataError, match="no frame 1"):
        reader_for("a.png").decode(save(tmp_path / "a.png", GREY), 1, "CT")
    assert {".png", ".jpg"} <= set(suffixes())
    assert callable(register)


def test_hu_is_shown_through_the_brain_window() -> None:
    shown = to_display(np.array([[-1000, 0, 40, 80, 3000]], np.int16), "HU")
    assert shown.tolist() == [[0, 0, 128, 255, 255]]
