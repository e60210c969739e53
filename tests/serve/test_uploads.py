from __future__ import annotations

import asyncio
import struct
import traceback
import zlib

import numpy as np
import pytest
from PIL import Image

from orchestrator.serve.errors import RequestError
from orchestrator.serve.images import Decoder, ImageLimits, decode, to_unit
from tests.serve.serving import encode

GREY, RGB = (1, 12, 12), (3, 12, 12)


@pytest.fixture
def colour() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 of uint8[H, W, 3], unrounded."""
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


def test_a_grey_png_of_the_right_size_is_untouched(grey):
    assert np.array_equal(decode(encode(Image.fromarray(grey)), GREY)[0], grey)


def test_grey_becomes_three_equal_channels(grey):
    pixels = decode(encode(Image.fromarray(grey)), RGB)
    assert all(np.array_equal(channel, grey) for channel in pixels)


def test_colour_keeps_its_channels_in_order(colour):
    assert np.array_equal(decode(encode(Image.fromarray(colour)), RGB), colour.transpose(2, 0, 1))


def test_colour_becomes_luma(colour):
    pixels = decode(encode(Image.fromarray(colour)), GREY)[0]
    assert np.abs(pixels - luma(colour)).max() <= 1


def test_transparency_is_laid_over_white(colour):
    alpha = np.random.default_rng(2).integers(0, 256, (12, 12, 1), dtype=np.uint8)
    image = Image.fromarray(np.concatenate([colour, alpha], 2))
    share = alpha / 255
    expected = colour * share + 255 * (1 - share)
    pixels = decode(encode(image), RGB).transpose(1, 2, 0)
    assert np.abs(pixels - expected).max() <= 1


def test_grey_with_transparency_is_laid_over_white(grey):
    image = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (12, 12), 0)))
    assert (decode(encode(image), GREY) == 255).all()


def test_a_transparent_colour_without_alpha_channel_is_white():
    image = Image.new("RGB", (12, 12), (10, 20, 30))
    assert (decode(encode(image, transparency=(10, 20, 30)), RGB) == 255).all()


def test_a_palette_becomes_its_colours(colour):
    image = Image.fromarray(colour).quantize(8)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(encode(image), RGB), expected)


def test_sixteen_bit_grey_is_scaled_not_cut():
    wide = np.random.default_rng(3).integers(0, 65536, (12, 12), dtype=np.uint16)
    pixels = decode(encode(Image.fromarray(wide)), GREY)[0]
    assert np.array_equal(pixels, np.rint(wide / 257).astype(np.uint8))


def png_of_16_bit_colour(values: np.ndarray) -> bytes:
    """A PNG of uint16[H, W, C], C colours with or without alpha; Pillow can't write one."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    return png(head, zlib.compress(rows))


def test_sixteen_bit_colour_keeps_its_upper_byte():
    wide = np.random.default_rng(3).integers(0, 65536, (12, 12, 3), dtype=np.uint16)
    pixels = decode(png_of_16_bit_colour(wide), RGB).transpose(1, 2, 0)
    assert np.array_equal(pixels, wide >> 8)
    assert np.abs(pixels.astype(float) - np.rint(wide / 257)).max() <= 1


def test_sixteen_bit_colour_with_transparency_is_laid_over_white():
    wide = np.random.default_rng(3).integers(0, 65536, (12, 12, 4), dtype=np.uint16)
    share = wide[..., 3:] / 65535
    expected = wide[..., :3] / 257 * share + 255 * (1 - share)
    pixels = decode(png_of_16_bit_colour(wide), RGB).transpose(1, 2, 0)
    assert np.abs(pixels - expected).max() <= 2


def test_one_bit_is_black_and_white():
    image = Image.new("1", (12, 12), 1)
    assert (decode(encode(image), GREY) == 255).all()


def test_jpeg_is_near_what_was_saved():
    ramp = np.tile(np.arange(0, 240, 20, dtype=np.uint8), (12, 1))
    pixels = decode(encode(Image.fromarray(ramp), "JPEG", quality=95), GREY)[0]
    assert np.abs(pixels.astype(int) - ramp).max() <= 6


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("CMYK", (12, 12), (0, 255, 255, 0))
    pixels = decode(encode(image, "JPEG"), RGB)
    assert pixels[0].min() > 200 and pixels[1:].max() < 60
    grey = decode(encode(image, "JPEG"), GREY)[0]
    assert np.abs(grey - luma(pixels.transpose(1, 2, 0))).max() <= 2


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(grey, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(grey), exif=exif)
    assert np.array_equal(decode(data, GREY)[0], np.rot90(grey, turns))


def test_a_wide_image_is_cropped_at_its_centre():
    wide = np.zeros((12, 36), np.uint8)
    wide[:, 12:24] = 200
    assert (decode(encode(Image.fromarray(wide)), GREY) == 200).all()


def test_a_larger_image_is_averaged():
    checks = np.indices((48, 48)).sum(0) % 2 * np.uint8(255)
    pixels = decode(encode(Image.fromarray(checks.astype(np.uint8))), GREY)
    assert np.abs(pixels[0, 1:-1, 1:-1].astype(int) - 127.5).max() <= 2


def test_sides_that_differ():
    pixels = decode(encode(Image.new("L", (7, 30), 9)), (1, 5, 20))
    assert pixels.shape == (1, 5, 20) and (pixels == 9).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_cut_short_is_refused(kind, share):
    noise = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(RequestError, match=r"cut short|no PNG or JPEG"):
        decode(data[: int(len(data) * share)], RGB)


def test_nothing_is_kept_of_an_image_that_was_refused():
    """A form may hold many, and the reason of each is kept until all are answered."""
    noise = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "JPEG")

    async def refused() -> RequestError:
        with pytest.raises(RequestError, match="cut short") as caught:
            await Decoder(ImageLimits()).decode(data[: len(data) // 2], RGB)
        return caught.value

    error = asyncio.run(refused())
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert frames == ["refused", "decode"] and error.__context__ is None


def test_a_flipped_byte_in_a_png_is_refused():
    noise = np.random.default_rng(4).integers(0, 256, (64, 64), dtype=np.uint8)
    data = bytearray(encode(Image.fromarray(noise)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(RequestError, match="damaged"):
        decode(bytes(data), GREY)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused_by_their_content(grey, kind):
    with pytest.raises(RequestError, match="no PNG or JPEG"):
        decode(encode(Image.fromarray(grey), kind), GREY)


@pytest.mark.parametrize("data", [b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(RequestError) as refused:
        decode(data, GREY)
    assert refused.value.status == 400


def test_an_empty_body_is_named():
    with pytest.raises(RequestError, match="no image"):
        decode(b"", GREY)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no data: a decompression bomb."""

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return png(head, zlib.compress(bytes(1000)))


def png(head: bytes, data: bytes) -> bytes:
    """A PNG of a header and compressed rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    parts = chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [9000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded(side):
    with pytest.raises(RequestError, match="pixels") as refused:
        decode(png_header(side, side), GREY)
    assert refused.value.status == 413


# --- time and memory -----------------------------------------------------------------------


def test_decoding_ends_when_its_time_is_over(colour):
    large = np.random.default_rng(4).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG"):
        data = encode(Image.fromarray(large), kind)
        with pytest.raises(RequestError, match="may take 1e-09 seconds") as refused:
            decode(data, RGB, ImageLimits(seconds=1e-9))
        assert refused.value.status == 413
        assert decode(data, RGB).shape == RGB


def test_a_jpeg_of_many_scans_is_refused():
    """Each scan is a pass over all pixels, however few its bytes."""
    image = Image.fromarray(np.random.default_rng(4).integers(0, 256, (64, 64), dtype=np.uint8))
    data = encode(image, "JPEG", progressive=True)
    assert 1 < data.count(b"\xff\xda") < 20
    assert decode(data, GREY).shape == GREY
    last = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[last:-2] * 100 + data[-2:]
    with pytest.raises(RequestError, match="seconds") as refused:
        decode(bomb, GREY)
    assert refused.value.status == 413


@pytest.mark.parametrize("side", [(1, 60_000), (60_000, 1)])
def test_a_long_thin_image_is_cropped_before_it_grows(side):
    """Covering 224×224, it would be 13 million pixels long and 224 wide: 3 GB."""
    values = np.zeros(side[::-1], np.uint8)
    values.reshape(-1)[29_000:31_000] = 200
    pixels = decode(encode(Image.fromarray(values)), (1, 224, 224))
    assert pixels.shape == (1, 224, 224) and (pixels == 200).all()


def test_a_panorama_is_resized_as_it_always_was():
    """Cropping before it is for images that are far longer still."""
    wide = np.random.default_rng(5).integers(0, 256, (24, 360), dtype=np.uint8)
    image = Image.fromarray(wide)
    expected = np.asarray(image.resize((180, 12), Image.Resampling.BILINEAR))[:, 84:96]
    assert np.array_equal(decode(encode(image), GREY)[0], expected)


def test_large_images_are_decoded_one_at_a_time():
    large, small = (encode(Image.new("L", (side, side), 7)) for side in (2100, 100))
    entered: list[str] = []

    class Room:
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *error: object) -> None:
            entered.append("out")

    for data, expected in [(small, []), (large, ["in", "out"])]:
        assert (decode(data, GREY, large=Room()) == 7).all()
        assert entered == expected

    async def several() -> list[np.ndarray]:
        decoder = Decoder(ImageLimits())
        return await asyncio.gather(*(decoder.decode(one, GREY) for one in (small, large) * 3))

    assert all((one == 7).all() for one in asyncio.run(several()))


def test_the_limit_on_bytes(grey):
    data = encode(Image.fromarray(grey))
    with pytest.raises(RequestError, match="bytes") as refused:
        decode(data, GREY, ImageLimits(bytes=len(data) - 1))
    assert refused.value.status == 413
    assert decode(data, GREY, ImageLimits(bytes=len(data))).shape == GREY


def test_a_model_of_other_channels_takes_no_images(grey):
    with pytest.raises(RequestError, match="4"):
        decode(encode(Image.fromarray(grey)), (4, 12, 12))


def test_pixels_are_scaled_to_one():
    assert to_unit(np.array([0, 51, 255], np.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    already = np.array([0.25], np.float32)
    assert to_unit(already) is already
