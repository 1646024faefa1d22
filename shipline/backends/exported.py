"""Programs of torch.export on the CPU."""

from __future__ import annotations

import io
import json
import re
from typing import ClassVar, Self

from torch._C import PyTorchFileReader

from shipline.artifact import ServingSettings
from shipline.backends.torch import SIGNATURE, TorchBackend, damaged

_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_RECORDS = re.compile(
    r"models/model\.json|data/weights/weight_\d+|data/constants/tensor_\d+"
    rf"|{re.escape(_SAMPLES)}|{'|'.join(map(re.escape, _CONFIGS))}|extra/{re.escape(SIGNATURE)}"
    r"|archive_format|archive_version|byteorder|\.data/\w+"
)


class ExportedBackend(TorchBackend):
    """A graph of torch.export, run operator by operator.

    torch unpickles what such an archive may hold besides a graph and plain tensors: example inputs, tensors of other
    classes, custom objects. Shipline writes none of these, and refuses an archive that has any before torch sees it.
    The shapes in a graph are read by sympy, which evaluates text, so the file still counts as code.
    """

    format: ClassVar[str] = "torch-export"
    model_file: ClassVar[str] = "model.pt2"

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        """Return the graph; it needs no other file.

        Raises:
            IntegrityError: it holds what torch would unpickle.
        """
        # torch.export.load falls back to an older format, all pickles, where this fails.
        from torch.export.pt2_archive._package import load_pt2

        archive = PyTorchFileReader(io.BytesIO(model))
        _refuse_pickles(archive)
        content = load_pt2(io.BytesIO(model))
        program = content.exported_programs["model"].module(check_guards=False)  # they stand in the signature
        return cls.of(lambda tensors: program(*tensors), content.extra_files[SIGNATURE], settings)


def _refuse_pickles(archive: PyTorchFileReader) -> None:
    """Raise IntegrityError where there is a record that torch would unpickle, or that Shipline does not write."""
    records = archive.get_all_records()
    for name in records:
        if not _RECORDS.fullmatch(name):
            raise damaged(ExportedBackend.model_file, repr(name))
    if len(set(records)) < len(records):
        raise damaged(ExportedBackend.model_file, "one record twice")
    if archive.get_record_size(_SAMPLES):
        raise damaged(ExportedBackend.model_file, "example inputs")
    for config in _CONFIGS:
        entries = json.loads(archive.get_record(config))["config"]
        if any(entry["use_pickle"] for entry in entries.values()):
            raise damaged(ExportedBackend.model_file, "tensors that are pickled")
