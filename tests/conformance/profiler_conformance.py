"""What every profiler must do."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from training import Mlp, bare_trainer, metric_rows, new_trainer, on_hook, same_weights, train_loader, val_loader

from shipline import plugins
from shipline.store import open_store
from shipline.train.profilers import Profiler


class ProfilerConformance:
    """Inherit, and give `name` and a fixture `profiler` that reports whatever it measures."""

    name: str

    def test_is_found_by_its_name(self, profiler: Profiler) -> None:
        assert plugins.load("profiler", self.name) is type(profiler)

    @pytest.fixture
    def ready(self, profiler: Profiler) -> Profiler:
        profiler.setup("fit", None, 0, Mlp())
        return profiler

    def test_it_measures_a_block_and_what_is_within(self, ready: Profiler) -> None:
        with ready.profile("outer") as name:
            for _ in range(3):
                with ready.profile("inner step"):
                    pass
        ready.teardown("fit")
        assert name == "outer"
        text = ready.summary()
        assert "outer" in text
        assert "inner step" in text

    def test_an_error_goes_through_it(self, ready: Profiler) -> None:
        for _ in range(2):
            with pytest.raises(KeyError), ready.profile("outer"), ready.profile("inner"):
                raise KeyError
        ready.teardown("fit")
        assert "inner" in ready.summary()

    def test_a_wrapped_function_is_the_function(self, ready: Profiler) -> None:
        wrapped = ready.wrap("adding", lambda a, *, b: a + b)
        assert [wrapped(1, b=2), wrapped(3, b=4)] == [3, 7]
        ready.teardown("fit")
        assert "adding" in ready.summary()

    def test_a_wrapped_iterable_gives_what_it_gives(self, ready: Profiler) -> None:
        def three() -> Iterator[int]:
            yield from range(3)

        assert list(ready.profile_iterable(three(), "fetching")) == [0, 1, 2]
        for _ in ready.profile_iterable([1, 2, 3], "fetching"):
            break
        ready.teardown("fit")
        assert "fetching" in ready.summary()

    def test_a_run_is_the_same_with_it(self, profiler: Profiler, tmp_path: Path) -> None:
        runs = []
        for name, given in (("with", profiler), ("without", None)):
            module = Mlp()
            module.load_state_dict({key: value * 0 + 0.01 for key, value in module.state_dict().items()})
            trainer = new_trainer(tmp_path, name=name, max_epochs=2, profiler=given, log_every_n_steps=1)
            run = trainer.fit(module, train_loader(128, shuffle=False), val_loader())
            runs.append((module, run.metrics, metric_rows(str(run.url))))
        assert same_weights(runs[0][0], runs[1][0])
        assert runs[0][1:] == runs[1][1:]

    def test_its_report_lies_in_the_runs_directory(
        self, profiler: Profiler, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Also on a store that is not this machine's, and of each stage by itself."""
        trainer = new_trainer(url, max_epochs=1, profiler=profiler)
        run = trainer.fit(Mlp(), train_loader(128), val_loader())
        assert "[Module]Mlp.training_step" in capsys.readouterr().out
        report = open_store(str(run.url)).read("fit-profile-0.txt").decode()
        assert "[Module]Mlp.training_step" in report
        trainer.validate(Mlp(), val_loader())
        report = open_store(str(run.url)).read("validate-profile-0.txt").decode()
        assert "[Module]Mlp.validation_step" in report
        assert "training_step" not in report

    def test_where_files_go_and_how_they_are_called_is_a_setting(
        self, profiler: Profiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        profiler.dirpath, profiler.filename = str(tmp_path / "there"), "mine"
        bare_trainer(max_epochs=1, profiler=profiler).fit(Mlp(), train_loader(128))
        assert "[Module]Mlp.training_step" in (tmp_path / "there" / "fit-mine-0.txt").read_text()
        assert "training_step" not in capsys.readouterr().out

    def test_a_run_that_fails_is_reported(self, profiler: Profiler, tmp_path: Path) -> None:
        def fail(_trainer: Any, _module: Any, _outputs: Any, _batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise RuntimeError("power cut")

        profiler.dirpath = str(tmp_path)
        with pytest.raises(RuntimeError, match="power cut"):
            bare_trainer(max_epochs=1, profiler=profiler, callbacks=on_hook("on_train_batch_end", fail)).fit(
                Mlp(), train_loader(128)
            )
        assert "[Module]Mlp.training_step" in (tmp_path / "fit-profile-0.txt").read_text()

    def test_it_travels_to_workers(self, profiler: Profiler) -> None:
        """Before a run and after one."""
        for _ in range(2):
            again = pickle.loads(pickle.dumps(profiler))  # noqa: S301 -- our own
            bare_trainer(max_steps=4, profiler=again).fit(Mlp(), train_loader(128))
            assert "training_step" in again.summary()
            profiler = again
