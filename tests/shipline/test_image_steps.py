"""Steps of pictures."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from raw_rows import NOISE, PIXELS, encoded, png_that_claims
from step_conformance import StepConformance

from shipline.errors import ProcessingError
from shipline.processing import DecodeImage, Grayscale, Layout, Normalize, Resize, Rgb, Step
from shipline.processing.image import FORMATS, MAX_PIXELS


class TestDecodeImage(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return DecodeImage(max_pixels=10_000)

    @pytest.fixture
    def value(self) -> bytes:
        return encoded(NOISE)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {"compress_level": 0})],
    )
    def test_lossless_files_give_their_pixels(self, kind: str, options: dict[str, Any]) -> None:
        found = DecodeImage()(encoded(NOISE, kind, **options))
        assert (found.dtype, found.shape) == (np.uint8, (40, 30, 3))
        assert np.array_equal(found, NOISE)

    def test_a_jpeg_gives_nearly_its_pixels(self) -> None:
        smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
        found = DecodeImage()(encoded(smooth, "JPEG", quality=95))
        assert found.shape == (64, 64, 3)
        assert np.abs(found[:, :, 0].astype(int) - smooth).max() <= 3

    def test_of_an_animation_the_first_picture_counts(self) -> None:
        frames = [Image.new("P", (4, 4), colour) for colour in (0, 1)]
        for frame in frames:
            frame.putpalette([255, 0, 0, 0, 255, 0])
        found = DecodeImage()(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
        assert found[0, 0].tolist() == [255, 0, 0]

    def test_of_16_bits_the_upper_8_are_kept(self) -> None:
        """Pillow's own conversion would make everything above 255 white."""
        values = np.array([[0, 255, 256], [0x1234, 0x8000, 0xFFFF]], np.uint16)
        for kind in ("PNG", "TIFF"):
            found = DecodeImage()(encoded(values, kind))
            assert found.tolist() == [[[v >> 8] * 3 for v in row] for row in values.tolist()]

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_32_bits_have_no_range_and_are_refused(self, dtype: type) -> None:
        with pytest.raises(ProcessingError, match="has 32 bits a channel; 8 or 16 are expected"):
            DecodeImage()(encoded(np.zeros((2, 2), dtype), "TIFF"))

    def test_a_palette_becomes_its_colours(self) -> None:
        picture = Image.new("P", (2, 1))
        picture.putpalette([10, 20, 30, 40, 50, 60])
        picture.putdata([1, 0])
        assert DecodeImage()(encoded(picture)).tolist() == [[[40, 50, 60], [10, 20, 30]]]

    @pytest.mark.parametrize(
        ("picture", "options", "shown"),
        [
            (Image.new("RGBA", (1, 1), (200, 0, 0, 0)), {}, [255, 255, 255]),
            (Image.new("RGBA", (1, 1), (200, 0, 0, 255)), {}, [200, 0, 0]),
            (Image.new("RGBA", (1, 1), (0, 0, 0, 127)), {}, [128, 128, 128]),
            (Image.new("LA", (1, 1), (0, 0)), {}, [255, 255, 255]),
            (Image.new("RGB", (1, 1), (1, 2, 3)), {"transparency": (1, 2, 3)}, [255, 255, 255]),
            (Image.new("L", (1, 1), 7), {"transparency": 7}, [255, 255, 255]),
            (Image.new("L", (1, 1), 7), {"transparency": 8}, [7, 7, 7]),
            (Image.new("P", (1, 1), 0), {"transparency": 0}, [255, 255, 255]),
            (Image.new("1", (1, 1), 1), {}, [255, 255, 255]),
            (Image.new("1", (1, 1), 0), {}, [0, 0, 0]),
        ],
        ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
    )
    def test_transparency_is_laid_on_white(
        self, picture: Image.Image, options: dict[str, Any], shown: list[int]
    ) -> None:
        assert DecodeImage()(encoded(picture, **options)).tolist() == [[shown]]

    @pytest.mark.parametrize("colour", [(0, 0, 0, 0), (255, 255, 255, 0)])
    def test_cmyk_becomes_rgb(self, colour: tuple[int, ...]) -> None:
        found = DecodeImage()(encoded(Image.new("CMYK", (8, 8), colour), "JPEG", quality=100))
        assert np.abs(found[4, 4].astype(int) - (255 - colour[0])).max() <= 2

    @pytest.mark.parametrize(
        ("orientation", "upright"),
        [
            (0, PIXELS),  # unknown: as it is
            (1, PIXELS),
            (2, PIXELS[:, ::-1]),
            (3, PIXELS[::-1, ::-1]),
            (4, PIXELS[::-1]),
            (5, PIXELS.transpose(1, 0, 2)),
            (6, PIXELS.transpose(1, 0, 2)[:, ::-1]),
            (7, PIXELS.transpose(1, 0, 2)[::-1, ::-1]),
            (8, PIXELS.transpose(1, 0, 2)[::-1]),
            (9, PIXELS),
        ],
    )
    def test_a_camera_that_was_turned_gives_upright_pictures(self, orientation: int, upright: np.ndarray) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert np.array_equal(DecodeImage()(encoded(PIXELS, exif=exif)), upright)

    @pytest.mark.parametrize(("width", "height"), [(1001, 1), (1, 1001), (40, 26)])
    def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(self, width: int, height: int) -> None:
        with pytest.raises(ProcessingError, match=f"has {width}x{height} pixels; at most 1000 are allowed"):
            DecodeImage(max_pixels=1000)(png_that_claims(width, height))

    def test_as_many_pixels_as_allowed_are_fine(self) -> None:
        assert DecodeImage(max_pixels=1200)(encoded(NOISE)).shape == (40, 30, 3)
        with pytest.raises(ProcessingError, match="at most 1199 are allowed"):
            DecodeImage(max_pixels=1199)(encoded(NOISE))

    @pytest.mark.parametrize("side", [6_000, 10_000, 14_000, 1 << 30])
    def test_a_decompression_bomb_is_called_too_large(self, side: int) -> None:
        """From 89 million pixels on Pillow warns, from MAX_PIXELS on it refuses by itself."""
        with pytest.raises(ProcessingError, match="at most 16777216 are allowed"):
            DecodeImage()(png_that_claims(side, side))

    @pytest.mark.parametrize("limit", [0, -1, MAX_PIXELS + 1])
    def test_a_limit_that_cannot_be_kept_is_refused(self, limit: int) -> None:
        with pytest.raises(ValidationError, match="max_pixels"):
            DecodeImage(max_pixels=limit)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
    def test_a_cut_file_is_refused_or_complete(self, kind: str) -> None:
        """A picture is never filled up with grey: what is decoded of a cut file has every pixel."""
        data = encoded(NOISE, kind)
        whole, decoded = DecodeImage()(data), 0
        for length in range(0, len(data), 7):
            with contextlib.suppress(ProcessingError):
                assert np.array_equal(DecodeImage()(data[:length]), whole), length
                decoded += 1
        assert decoded <= len(data) // 70

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0",
            b"\x89PNG\r\n\x1a\n",
            b"{}",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            b"GIF89a" + b"\xff" * 100,
            b"\xff\xd8\xff\xe0" + b"\0" * 100,
            b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\0" * 100,
            b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 100,
            b"BM" + b"\xff" * 100,
            np.random.default_rng(1).bytes(5000),
            png_that_claims(0, 0),
            png_that_claims(100, 100),
        ],
        ids=lambda data: repr(data[:8]),
    )
    def test_what_is_no_image_is_refused(self, data: bytes) -> None:
        with pytest.raises(ProcessingError, match=r"The body is no readable image \(PNG, JPEG"):
            DecodeImage()(data)

    def test_every_flipped_byte_is_refused_or_decoded(self) -> None:
        """Hostile bytes make Pillow raise almost anything; nothing but a ProcessingError comes out."""
        for kind in FORMATS:
            good = encoded(Image.fromarray(PIXELS), kind)
            for position in range(len(good)):
                data = good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :]
                try:
                    found = DecodeImage(max_pixels=10_000)(data)
                except ProcessingError:
                    continue
                assert (found.dtype, found.shape[2]) == (np.uint8, 3)

    @pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "EPS"])
    def test_a_format_that_is_not_listed_is_refused(self, kind: str) -> None:
        with pytest.raises(ProcessingError, match="no readable image"):
            DecodeImage()(encoded(Image.fromarray(PIXELS), kind))

    @pytest.mark.parametrize("value", ["iVBORw0KGgo=", None, 7, [137, 80], {"b64": ""}, PIXELS])
    def test_what_is_no_bytes_is_refused(self, value: Any) -> None:
        with pytest.raises(ProcessingError, match=f"Expected the bytes of an image; got {type(value).__name__}"):
            DecodeImage()(value)


class TestGrayscale(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Grayscale()

    @pytest.fixture
    def value(self) -> np.ndarray:
        return NOISE.copy()

    def test_weights_are_those_of_bt_601(self) -> None:
        colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
        assert Grayscale()(colours).tolist() == [[[76], [150], [29], [255]]]

    def test_grey_stays_grey(self) -> None:
        grey = NOISE[:, :, :1]
        assert np.array_equal(Grayscale()(grey), grey)


class TestRgb(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Rgb()

    @pytest.fixture
    def value(self) -> np.ndarray:
        return NOISE[:, :, :1].copy()

    def test_one_channel_becomes_three_equal_ones(self) -> None:
        found = Rgb()(NOISE[:, :, :1])
        assert np.array_equal(found, NOISE[:, :, [0, 0, 0]])

    def test_three_channels_stay(self) -> None:
        assert np.array_equal(Rgb()(NOISE), NOISE)


class TestResize(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Resize(height=7, width=5, interpolation="lanczos")

    @pytest.fixture
    def value(self) -> np.ndarray:
        return NOISE.copy()

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_height_comes_before_width_and_channels_stay(self, interpolation: str, channels: int) -> None:
        found = Resize(height=6, width=9, interpolation=interpolation)(NOISE[:, :, :channels])
        assert (found.dtype, found.shape) == (np.uint8, (6, 9, channels))

    def test_shrinking_averages(self) -> None:
        """Every pixel counts; picking some of them is what other libraries do, and what makes answers differ."""
        stripes = np.tile(np.array([0, 255], np.uint8), (8, 32))[:, :, None]
        assert np.ptp(Resize(height=8, width=8)(stripes)) <= 10
        assert Resize(height=8, width=8)(stripes).mean() == pytest.approx(127.5, abs=2)

    def test_nearest_repeats_pixels(self) -> None:
        found = Resize(height=4, width=6, interpolation="nearest")(PIXELS)
        assert np.array_equal(found, PIXELS.repeat(2, axis=0).repeat(2, axis=1))

    def test_the_right_size_stays_as_it_is(self) -> None:
        assert np.array_equal(Resize(height=40, width=30)(NOISE), NOISE)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"height": 0, "width": 8}, "height\n.*greater than or equal to 1"),
            ({"height": 8, "width": 16385}, "width\n.*less than or equal to 16384"),
            ({"height": 8}, "width\n.*required"),
            ({"height": 8, "width": 8.5}, "width\n.*valid integer"),
            ({"height": 8, "width": 8, "interpolation": "area"}, "interpolation\n.*'nearest', 'bilinear'"),
        ],
    )
    def test_sizes_that_make_no_sense_are_refused(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            Resize(**parameters)


class TestNormalize(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Normalize(scale=128, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))

    @pytest.fixture
    def value(self) -> np.ndarray:
        return NOISE.copy()

    def test_scale_mean_and_std_are_applied_along_the_channels(self) -> None:
        found = Normalize(scale=100, mean=(0.5, 1, 1.5), std=(1, 2, 4))(np.full((1, 2, 3), 200, np.uint8))
        assert found.dtype == np.float32
        assert found.tolist() == [[[1.5, 0.5, 0.125]] * 2]

    def test_one_mean_is_for_all_channels(self) -> None:
        assert Normalize(scale=1, mean=(1,), std=(2,))(np.array([[[3, 5]]])).tolist() == [[[1, 2]]]

    def test_without_parameters_bytes_become_0_to_1(self) -> None:
        assert Normalize()(np.array([[[0, 51, 255]]], np.uint8)).tolist() == [[[0, np.float32(0.2), 1]]]

    @pytest.mark.parametrize("name", ["mean", "std"])
    def test_a_number_of_values_that_fits_no_channels_is_named(self, name: str) -> None:
        with pytest.raises(ProcessingError, match=f"normalize has 2 values of {name} for 3 channels"):
            Normalize(**{name: (1, 2)})(NOISE)

    @pytest.mark.parametrize(
        "parameters",
        [
            {"scale": 0},
            {"std": (1, 0, 1)},
            {"scale": float("nan")},
            {"std": (float("inf"),)},
            {"mean": (float("nan"),)},
            {"mean": ()},
            {"std": ()},
            {"mean": "abc"},
        ],
    )
    def test_parameters_that_give_no_numbers_are_refused(self, parameters: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=next(iter(parameters))):
            Normalize(**parameters)


class TestLayout(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Layout(to="HWC")

    @pytest.fixture
    def value(self) -> np.ndarray:
        return NOISE.copy()

    def test_channels_come_first(self) -> None:
        found = Layout()(NOISE)
        assert found.shape == (3, 40, 30)
        assert found.flags.c_contiguous
        assert all(np.array_equal(found[c], NOISE[:, :, c]) for c in range(3))

    def test_channels_may_stay_last(self) -> None:
        assert np.array_equal(Layout(to="HWC")(NOISE), NOISE)

    def test_another_layout_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="'CHW' or 'HWC'"):
            Layout(to="NCHW")


class TestLayoutWithChannelsFirst(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Layout(to="CHW")

    @pytest.fixture
    def value(self) -> np.ndarray:
        return NOISE.copy()
