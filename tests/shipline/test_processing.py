"""Processing: every step, and the list of them as data."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import warnings
import zlib
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from step_conformance import StepConformance

from shipline.errors import ConfigError, IntegrityError, ProcessingError, SchemaError, SignatureError, UnknownNameError
from shipline.processing import (
    Columns,
    DecodeImage,
    Grayscale,
    Labels,
    Layout,
    Normalize,
    Processing,
    Resize,
    Rgb,
    Softmax,
    Step,
    TopK,
    step,
)
from shipline.processing.image import FORMATS, MAX_PIXELS
from shipline.signature import Signature, TensorSpec

# ---- pictures --------------------------------------------------------------------------------------------------------

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14  # [H, W, 3]
NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file of this kind."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header says so, with hardly any pixels in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


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


# ---- rows of a table -------------------------------------------------------------------------------------------------

COLUMNS = Columns(numeric=("age", "height"), categorical={"colour": ("red", "green", "blue")})
ROW = {"age": 1, "height": 2.5, "colour": "green"}


class TestColumns(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return COLUMNS

    @pytest.fixture
    def value(self) -> dict[str, Any]:
        return dict(ROW)

    def test_numbers_come_first_then_a_one_for_each_category(self) -> None:
        found = COLUMNS(ROW)
        assert found.dtype == np.float32
        assert found.tolist() == [1, 2.5, 0, 1, 0]

    def test_the_order_of_the_row_does_not_matter(self) -> None:
        assert COLUMNS(dict(reversed(ROW.items()))).tolist() == COLUMNS(ROW).tolist()

    def test_the_order_of_columns_and_categories_survives_json(self) -> None:
        columns = Columns(numeric=("z", "a"), categorical={"y": ("2", "1"), "b": ("x",)})
        again = Processing.from_json(Processing([columns]).to_json())
        assert again.prepare({"a": 1, "b": "x", "y": "1", "z": 9}).tolist() == [9, 1, 0, 1, 1]

    @pytest.mark.parametrize("number", [0, -0.0, 1e38, -1e38, 3.4028235e38, 2**100, 1e-300, np.float64(2)])
    def test_every_float32_is_a_number(self, number: float) -> None:
        assert COLUMNS(ROW | {"age": number})[0] == np.float32(number)

    @pytest.mark.parametrize(
        "value", [True, False, "4", "", None, [1], {"value": 1}, 1j, b"4"], ids=lambda value: repr(value)
    )
    def test_what_is_no_number_is_refused(self, value: Any) -> None:
        with pytest.raises(ProcessingError) as caught:
            COLUMNS(ROW | {"age": value})
        assert str(caught.value) == f"Column 'age' must be a number; got {value!r}."

    @pytest.mark.parametrize(
        "value",
        [float("nan"), float("inf"), -float("inf"), 1e39, -1e39, 3.4028236e38, 2**128 - 2**103, 10**400, -(10**5000)],
        ids=lambda value: f"{type(value).__name__}",
    )
    def test_what_float32_cannot_hold_is_refused(self, value: float) -> None:
        with pytest.raises(ProcessingError, match="Column 'height' must be a finite float32 number, less than"):
            COLUMNS(ROW | {"height": value})

    @pytest.mark.parametrize("value", ["Red", "", None, 1, True, ["red"], {"red": 1}, float("nan")], ids=repr)
    def test_an_unknown_category_lists_the_known_ones(self, value: Any) -> None:
        with pytest.raises(ProcessingError) as caught:
            COLUMNS(ROW | {"colour": value})
        assert str(caught.value) == f"Column 'colour' must be one of red, green, blue; got {value!r}."

    def test_a_long_value_is_not_repeated_in_full(self) -> None:
        with pytest.raises(ProcessingError) as caught:
            COLUMNS(ROW | {"colour": "x" * 10_000})
        assert len(str(caught.value)) < 200

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("agee", " Did you mean 'age'?"), ("color", " Did you mean 'colour'?"), ("weight", " Did you mean 'height'?"),
         ("xyz", ""), ("", "")],
    )  # fmt: skip
    def test_an_unknown_column_suggests_the_nearest(self, name: str, hint: str) -> None:
        with pytest.raises(ProcessingError) as caught:
            COLUMNS({**ROW, name: 1})
        assert str(caught.value) == f"Unknown column {name!r}.{hint}"

    @pytest.mark.parametrize("name", ["age", "height", "colour"])
    def test_a_missing_column_is_named(self, name: str) -> None:
        with pytest.raises(ProcessingError, match=f"Missing column '{name}'"):
            COLUMNS({key: value for key, value in ROW.items() if key != name})

    @pytest.mark.parametrize("value", [None, [1, 2.5, "green"], "age=1", 4, b"{}"])
    def test_what_is_no_object_is_refused(self, value: Any) -> None:
        with pytest.raises(ProcessingError, match=f"Expected a JSON object of columns; got {type(value).__name__}"):
            COLUMNS(value)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({}, "at least one column, and each name once"),
            ({"numeric": ("a", "a")}, "each name once"),
            ({"numeric": ("a",), "categorical": {"a": ("x",)}}, "each name once"),
            ({"categorical": {"a": ()}}, "column 'a' needs at least one category, and each once"),
            ({"categorical": {"a": ("x", "x")}}, "column 'a' needs at least one category, and each once"),
            ({"numeric": (1,)}, "valid string"),
        ],
    )
    def test_columns_that_make_no_sense_are_refused(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            Columns(**parameters)


# ---- answers ---------------------------------------------------------------------------------------------------------


class TestSoftmax(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Softmax()

    @pytest.fixture
    def value(self) -> np.ndarray:
        return np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]], np.float32)

    def test_probabilities_are_those_of_the_formula(self) -> None:
        found = Softmax()(np.log(np.array([1, 2, 5], np.float32)))
        assert found.dtype == np.float64
        assert found == pytest.approx([0.125, 0.25, 0.625], abs=1e-7)

    def test_each_row_sums_to_1(self) -> None:
        logits = np.random.default_rng(0).normal(0, 30, (50, 7)).astype(np.float32)
        assert Softmax()(logits).sum(axis=-1) == pytest.approx(np.ones(50))

    @pytest.mark.parametrize(
        ("logits", "probabilities"),
        [
            ([1e38, 0, -1e38], [1, 0, 0]),
            ([3.4e38, 3.4e38], [0.5, 0.5]),
            ([-3.4e38, -3.4e38], [0.5, 0.5]),
            ([1000, 1000, -1000], [0.5, 0.5, 0]),
            ([-float("inf"), 0], [0, 1]),  # a class that is masked out
            ([5], [1]),
        ],
    )
    def test_extreme_logits_neither_overflow_nor_warn(self, logits: list[float], probabilities: list[float]) -> None:
        assert Softmax()(np.array(logits, np.float32)).tolist() == probabilities

    @pytest.mark.parametrize("logits", [[float("nan"), 0], [float("inf"), 0], [-float("inf")] * 2])
    def test_logits_that_are_no_numbers_give_nan(self, logits: list[float]) -> None:
        assert np.isnan(Softmax()(np.array(logits, np.float32))).all()

    def test_whole_numbers_are_logits_too(self) -> None:
        assert Softmax()(np.array([7, 7], np.int64)).tolist() == [0.5, 0.5]


class TestLabels(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Labels(names=("cat", "dog", "ant"))

    @pytest.fixture
    def value(self) -> np.ndarray:
        return np.array([0.2, 0.7, 0.1])

    def test_the_best_comes_first(self, step: Step, value: np.ndarray) -> None:
        answer = step(value)
        assert answer == {"label": "dog", "score": 0.7, "scores": {"dog": 0.7, "cat": 0.2, "ant": 0.1}}
        assert list(answer["scores"]) == ["dog", "cat", "ant"]
        json.dumps(answer)

    def test_equal_scores_keep_the_order_of_the_names(self, step: Step) -> None:
        assert list(step(np.array([0.5, 0.5, 0.5]))["scores"]) == ["cat", "dog", "ant"]

    def test_a_score_that_is_no_number_is_the_worst(self, step: Step) -> None:
        assert list(step(np.array([np.nan, -5, 1]))["scores"]) == ["ant", "dog", "cat"]

    @pytest.mark.parametrize("shape", [(2,), (4,), (1, 3), ()])
    def test_scores_that_do_not_fit_the_names_are_refused(self, step: Step, shape: tuple[int, ...]) -> None:
        with pytest.raises(ProcessingError) as caught:
            step(np.zeros(shape))
        assert str(caught.value) == f"labels has 3 names for scores of shape {list(shape)}."

    @pytest.mark.parametrize("names", [(), ("a", "b", "a"), (1, 2)])
    def test_names_that_cannot_be_told_apart_are_refused(self, names: tuple[Any, ...]) -> None:
        with pytest.raises(ValidationError, match="names"):
            Labels(names=names)


class TestTopK(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return TopK(k=2)

    @pytest.fixture
    def value(self) -> dict[str, Any]:
        return Labels(names=("cat", "dog", "ant"))(np.array([0.2, 0.7, 0.1]))

    def test_the_best_are_kept(self, step: Step, value: dict[str, Any]) -> None:
        assert step(value) == {"label": "dog", "score": 0.7, "scores": {"dog": 0.7, "cat": 0.2}}

    def test_more_than_there_are_keeps_all(self, value: dict[str, Any]) -> None:
        assert TopK(k=10**9)(value) == value

    def test_plain_scores_are_called_by_their_index(self) -> None:
        assert TopK(k=1)(np.array([0.2, 0.7, 0.1])) == {"label": "1", "score": 0.7, "scores": {"1": 0.7}}

    @pytest.mark.parametrize("k", [0, -1, 1.5, None])
    def test_a_k_that_keeps_nothing_is_refused(self, k: Any) -> None:
        with pytest.raises(ValidationError, match="k\n"):
            TopK(k=k)


# ---- the list of steps -----------------------------------------------------------------------------------------------

PICTURES = Processing(
    before=[DecodeImage(), Grayscale(), Resize(height=8, width=8), Normalize(mean=(0.5,)), Layout()],
    after=[Softmax(), Labels(names=("a", "b", "c")), TopK(k=2)],
)


def test_from_a_picture_to_an_answer() -> None:
    row = PICTURES.prepare(encoded(np.full((16, 16, 3), 255, np.uint8)))
    assert (row.dtype, row.shape) == (np.float32, (1, 8, 8))
    assert (row == 0.5).all()
    answer = PICTURES.answer(np.array([0, 0, np.log(2)], np.float32))
    assert answer["label"] == "c"
    assert answer["scores"] == pytest.approx({"c": 0.5, "a": 0.25})


def test_the_same_after_json() -> None:
    stored = PICTURES.to_json()
    again = Processing.from_json(stored)
    picture, output = encoded(NOISE), np.array([1.5, -2, 0.25], np.float32)
    assert again.prepare(picture).tobytes() == PICTURES.prepare(picture).tobytes()
    assert again.answer(output) == PICTURES.answer(output)
    assert again.to_json() == stored


def test_what_is_stored_can_be_read_by_people() -> None:
    assert json.loads(Processing([Resize(height=8, width=9)], [Softmax()]).to_json()) == {
        "schema_version": 1,
        "before": [{"step": "resize", "height": 8, "width": 9, "interpolation": "bilinear"}],
        "after": [{"step": "softmax"}],
    }


def test_no_steps_change_nothing() -> None:
    nothing = Processing.from_json(Processing([]).to_json())
    assert nothing.prepare([1, 2]).tolist() == [1, 2]
    assert nothing.answer(np.array([1.5, 2.5], np.float32)) == [1.5, 2.5]


@pytest.mark.parametrize(
    ("steps", "takes_bytes"), [([DecodeImage(), Layout()], True), ([COLUMNS], False), ([], False), ([Layout()], False)]
)
def test_pictures_are_sent_as_bytes_and_all_else_as_json(steps: list[Step], takes_bytes: bool) -> None:
    assert Processing(steps).takes_bytes is takes_bytes


@pytest.mark.parametrize("steps", [[DecodeImage()], [DecodeImage(), Grayscale(), Layout()], [COLUMNS]])
def test_torch_takes_a_prepared_row_without_a_warning(steps: list[Step]) -> None:
    """It warns of an array that it may not write to, such as Pillow's."""
    row = Processing(steps).prepare(ROW if steps == [COLUMNS] else encoded(NOISE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.from_numpy(row).shape == row.shape


class Halves(Step):
    """[2n] -> two inputs of [n]."""

    NAME: ClassVar[str] = "halves"

    def __call__(self, value: Any) -> Any:
        return dict(zip(("left", "right"), np.split(np.asarray(value, np.float32), 2), strict=True))


def test_a_step_may_make_several_inputs() -> None:
    left, right = (TensorSpec(name=name, dtype="float32", shape=(-1, 2)) for name in ("left", "right"))
    two, one = Signature(inputs=(left, right), outputs=(left,)), Signature(inputs=(left,), outputs=(left,))
    processing = Processing(before=[Halves()])
    found = processing.inputs([1, 2, 3, 4], two)
    assert {name: array.tolist() for name, array in found.items()} == {"left": [[1, 2]], "right": [[3, 4]]}
    with pytest.raises(SignatureError, match="Unknown input 'right'; known: left"):
        processing.inputs([1, 2, 3, 4], one)
    plain = Processing(before=[])
    assert plain.inputs(np.float32([1, 2]), one)["left"].tolist() == [[1, 2]]
    with pytest.raises(SignatureError, match="Missing input 'right'"):
        plain.inputs(np.float32([1, 2]), two)


def stored(**changes: Any) -> bytes:
    """A `processing.json`, with the changes."""
    return json.dumps({"schema_version": 1, "before": [], "after": [], **changes}).encode()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"step": "resiz"}, r"Unknown step 'resiz'\. Did you mean 'resize'\? Known: columns, decode_image, grayscale"),
        ({"step": "../resize"}, r"Unknown step '\.\./resize'"),
        ({"step": "os:system"}, "Unknown step 'os:system'"),
        ({"step": ""}, "Unknown step ''"),
        ({"step": "resize", "height": 8}, r"Step 'resize': width: Field required\."),
        ({"step": "resize", "height": 0, "width": 8}, "Step 'resize': height: Input should be greater"),
        ({"step": "softmax", "axis": 1}, "Step 'softmax': axis: Extra inputs are not permitted"),
        ({"step": "labels", "name": ["a"]}, "Step 'labels': names: Field required"),
        ({"step": "labels", "names": ["a"], "name": "b"}, "Step 'labels': name: Extra inputs"),
        ({"step": "columns"}, "Step 'columns': .*at least one column"),
    ],
)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_stored_step_that_cannot_be_used_is_named(side: str, item: dict[str, Any], message: str) -> None:
    with pytest.raises(IntegrityError, match=f"The stored processing cannot be used: {message}"):
        Processing.from_json(stored(**{side: [item]}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\x80\x05pickle",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        stored(schema_version="one"),
        stored(schema_version=None),
        stored(before=3),
        stored(before=None),
        stored(before={"step": "softmax"}),
        stored(before=["softmax"]),
        stored(before=[{}]),
        stored(before=[{"step": 3}]),
        stored(after=[{"step": ["softmax"]}]),
        b'{"schema_version": 1, "before": []}',
    ],
    ids=lambda data: repr(data[:60]),
)
def test_what_is_no_processing_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="The stored processing is damaged: a JSON object of steps is expected"):
        Processing.from_json(data)


def test_a_newer_processing_is_refused_whatever_else_it_holds() -> None:
    with pytest.raises(SchemaError, match="has schema version 2; this Shipline reads up to 1"):
        Processing.from_json(b'{"schema_version": 2, "graph": {}}')


def test_a_step_made_by_name_is_the_same_as_by_class() -> None:
    assert step("resize", height=8, width=9) == Resize(height=8, width=9)


def test_a_step_made_by_name_says_what_is_wrong() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown step 'gray'\. Did you mean 'grayscale'"):
        step("gray")
    with pytest.raises(ConfigError, match=r"Step 'top_k': k: Input should be greater than or equal to 1\."):
        step("top_k", k=0)
    with pytest.raises(ConfigError, match=r"Step 'normalize': std: Value error, must not be 0\."):
        step("normalize", std=(0,))
