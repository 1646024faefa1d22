"""The command line in tests: run it, and see what it leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TINY = """
import torch
from torch.utils.data import DataLoader, TensorDataset
import shipline as sl
from shipline.errors import ConfigError

class Tiny(sl.Module):
    def __init__(self, width: int = 4, lr: float = 0.1):
        if width < 1:
            raise ConfigError(f"width is {width}.")
        if width > 99:
            raise KeyboardInterrupt
        super().__init__()
        self.linear = torch.nn.Linear(width, 2)

    def forward(self, x):
        return self.linear(x)

class Data(sl.DataModule):
    def __init__(self, rows: int = 8):
        self.rows = rows

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(self.rows, 4)), 4)

class Stranger:
    pass
"""

TRAIN = """
module:
  class_path: tiny.Tiny
  init_args: {width: 4}
data:
  class_path: tiny.Data
trainer:
  max_epochs: 1
"""

UP = f"""
train:{TRAIN.replace(chr(10), chr(10) + "  ")}
export:
  to: models/tiny
  recipe:
    precision: float32
serve:
  port: 0
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, message: str) -> None:
        """Fail unless it ended with the code, and said this, on standard error and in one line."""
        assert self.code == code, self
        assert message in self.err
        assert "Traceback" not in self.err
        assert self.err.count("\n") == 1
        assert self.out == ""


Run = Callable[..., Outcome]


def in_process(*arguments: str, program: str = "") -> Outcome:
    """Run a command in a process of its own, after the program."""
    program = f"import sys\n{program}\nfrom shipline.commands import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    return Outcome(done.returncode, done.stdout, done.stderr)


def files(directory: Path) -> dict[str, bytes | None]:
    """Everything below the directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }
