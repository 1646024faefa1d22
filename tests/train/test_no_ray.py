"""One process trains without Ray: it is neither imported nor needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import Scripted, new_trainer, numbers

from shipline.errors import MissingExtraError

PROGRAM = """
import json, sys
from training import Mlp, new_trainer, train_loader, val_loader

def fit(epochs, ckpt_path=None):
    trainer = new_trainer(sys.argv[1], max_epochs=epochs)
    run = trainer.fit(Mlp(), train_loader(64), val_loader(32), ckpt_path=ckpt_path)
    trainer.validate(run.module, val_loader(32))
    trainer.test(run.module, val_loader(32))
    return run

fit(1)
fit(2, "last").checkpoint
Mlp.load_from_checkpoint(sys.argv[1] + "/mlp/best")
print(json.dumps(sorted(sys.modules)))
"""


def test_one_process_leaves_ray_alone(tmp_path: Path) -> None:
    """Training, checkpoints, resuming, evaluation."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "support")}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "torch" in loaded
    assert not loaded & {"ray", "shipline.train.launch.driver", "onnx", "onnxruntime", "fastapi", "s3fs"}
    assert (tmp_path / "mlp" / "version_0" / "metrics.csv").is_file()


def test_more_workers_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "shipline.train.launch.driver", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"above 1 needs Ray. Run: pip install 'shipline\[ray\]'"):
        new_trainer(tmp_path, max_epochs=1, workers=2).fit(Scripted(), numbers(1))
