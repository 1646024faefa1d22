"""Steps from the bytes of a picture to a tensor. Between the steps a picture is an array of height, width, channels."""

from __future__ import annotations

import io
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field, field_validator

from shipline.errors import ProcessingError
from shipline.processing.step import Step

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
Size = Field(ge=1, le=16384)
MAX_PIXELS = 178_956_970  # where Pillow itself gives up


class DecodeImage(Step):
    """Bytes of a PNG, JPEG, WebP, BMP, GIF or TIFF file -> uint8 [H, W, 3], upright; transparency is laid on white."""

    NAME: ClassVar[str] = "decode_image"
    TAKES: ClassVar[dict[str, Any]] = {"type": "string", "format": "binary"}

    max_pixels: int = Field(default=1 << 24, ge=1, le=MAX_PIXELS)

    def __call__(self, value: Any) -> np.ndarray:
        if not isinstance(value, bytes):
            raise ProcessingError(f"Expected the bytes of an image; got {type(value).__name__}.")
        try:
            image = Image.open(io.BytesIO(value), formats=FORMATS)
            width, height = image.size
            if width * height > self.max_pixels:
                raise ProcessingError(f"The image has {width}x{height} pixels; at most {self.max_pixels} are allowed.")
            return np.asarray(_opaque(ImageOps.exif_transpose(image)))
        except ProcessingError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # it does not say how many
            raise ProcessingError(f"The image has too many pixels; at most {self.max_pixels} are allowed.") from error
        except Exception as error:  # Pillow's decoders raise almost anything on hostile bytes
            raise ProcessingError(f"The body is no readable image ({', '.join(FORMATS)}).") from error


class Grayscale(Step):
    """uint8 [H, W, 3] -> uint8 [H, W, 1], with the weights of ITU-R BT.601."""

    NAME: ClassVar[str] = "grayscale"

    def __call__(self, value: np.ndarray) -> np.ndarray:
        return np.asarray(_picture(value).convert("L"))[:, :, None]


class Rgb(Step):
    """uint8 [H, W, 1 or 3] -> uint8 [H, W, 3]."""

    NAME: ClassVar[str] = "rgb"

    def __call__(self, value: np.ndarray) -> np.ndarray:
        return np.asarray(_picture(value).convert("RGB"))


class Resize(Step):
    """uint8 [H, W, C] -> uint8 [height, width, C]; Pillow's filters, which average when they shrink."""

    NAME: ClassVar[str] = "resize"

    height: int = Size
    width: int = Size
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    def __call__(self, value: np.ndarray) -> np.ndarray:
        if value.shape[:2] == (self.height, self.width):
            return value
        picture = _picture(value).resize((self.width, self.height), Image.Resampling[self.interpolation.upper()])
        return np.asarray(picture).reshape(self.height, self.width, -1)


class Normalize(Step):
    """Numbers -> float32: (value / scale - mean) / std, with mean and std along the last dimension."""

    NAME: ClassVar[str] = "normalize"

    scale: float = 255.0
    mean: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    std: tuple[float, ...] = Field(default=(1.0,), min_length=1)

    @field_validator("scale", "std")
    @classmethod
    def _not_zero(cls, divisor: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not np.all(divisor):
            raise ValueError("must not be 0")
        return divisor

    def __call__(self, value: np.ndarray) -> np.ndarray:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, value.shape[-1]):
                raise ProcessingError(f"normalize has {len(numbers)} values of {name} for {value.shape[-1]} channels.")
        scaled = value.astype(np.float32) / np.float32(self.scale)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


class Layout(Step):
    """[H, W, C] -> [C, H, W], as PyTorch wants it, or unchanged."""

    NAME: ClassVar[str] = "layout"

    to: Literal["CHW", "HWC"] = "CHW"

    def __call__(self, value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value.transpose(2, 0, 1)) if self.to == "CHW" else value


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):  # no range is agreed on for these, and convert() would clip
        raise ProcessingError("The image has 32 bits a channel; 8 or 16 are expected.")
    if image.mode.startswith("I"):  # 16 bits a channel: keep the upper 8, where convert() would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _picture(value: np.ndarray) -> Image.Image:
    return Image.fromarray(value[:, :, 0] if value.shape[2] == 1 else value)
