"""Progress bars, as a terminal shows them; and lines where there is none."""

from __future__ import annotations

import io
import itertools
import re
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from training import Mlp, Scripted, bare_trainer, new_trainer, numbers, on_hook, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError, MissingExtraError, TrainingError
from shipline.train import ProgressBar, RichProgressBar, TQDMProgressBar
from shipline.train.callbacks.progress.progress_bar import Bar

BARS = [RichProgressBar, TQDMProgressBar]
CURSOR_IS_BACK = "\x1b[?25h"


class Terminal(io.StringIO):
    """A terminal: what rich and tqdm take for one, and what somebody sees in it."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What is on the screen, but for empty lines at the end."""
        screen, row, column = [""], 0, 0
        for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.getvalue()):
            if piece == "\r":
                column = 0
            elif piece == "\n":
                row, column = row + 1, 0
                screen += [""] * (row + 1 - len(screen))
            elif piece.startswith("\x1b"):
                if piece.endswith("A"):
                    row -= int(piece[2:-1] or 1)
                elif piece.endswith("K"):
                    screen[row] = ""
            else:
                screen[row] = f"{screen[row]:{column}}"[:column] + piece + screen[row][column + len(piece) :]
                column += len(piece)
        return "\n".join(line.rstrip() for line in screen).rstrip().splitlines()


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make both outputs one terminal, in which a second passes between two looks at the clock.

    No fixture: pytest gives each phase of a test outputs of its own.
    """
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setattr(sys, "stdout", found)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    clock = iter(range(10**9))
    monkeypatch.setattr(
        "shipline.train.callbacks.progress.progress_bar.time", types.SimpleNamespace(monotonic=lambda: next(clock))
    )
    return found


def shown(line: str) -> str:
    """A line without the bar itself, times, rates and metrics."""
    line = re.sub(r"\|.*?\||[━╸╺]+|\d+%|\[.*|\d+:\d+:\d+|-:--:--|•|[\d.]+it/s.*|:(?= )", " ", line)
    return " ".join(line.split())


# ---- without a terminal ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bar", [None, ProgressBar, *BARS])
def test_without_a_terminal_an_epoch_is_a_line(capsys: pytest.CaptureFixture[str], bar: Any) -> None:
    trainer = bare_trainer(max_epochs=2, enable_progress_bar=True, callbacks=[] if bar is None else bar())
    trainer.fit(Mlp(), train_loader(64), val_loader(32))
    trainer.predict(Scripted(), numbers(3))
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  train_loss ")
    assert [word for word in lines[1].split() if word[0].isalpha()] == [
        "epoch", "train_loss", "val_loss", "val_acc", "s",
    ]  # fmt: skip
    assert err == ""


def test_epochs_without_an_end_have_a_number_alone(capsys: pytest.CaptureFixture[str]) -> None:
    bare_trainer(max_epochs=-1, max_steps=2, enable_progress_bar=True).fit(Scripted(), numbers(1))
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["epoch", "1"], ["epoch", "2"]]


def test_no_bar_where_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    bare_trainer(max_epochs=1, enable_progress_bar=False).fit(Scripted(), numbers(1))
    for bar in (RichProgressBar(refresh_rate=0), TQDMProgressBar(refresh_rate=0), RichProgressBar(), TQDMProgressBar()):
        if bar.refresh_rate:
            bar.disable()
        trainer = bare_trainer(max_epochs=1, callbacks=bar)
        trainer.fit(Scripted([1.0]), numbers(1), numbers(1))
        trainer.validate(Scripted([1.0, 1.0]), numbers(1))
        assert bar.is_disabled
    assert capsys.readouterr() == ("", "")


def test_only_the_first_worker_shows_anything() -> None:
    bar = RichProgressBar()
    bar.setup(types.SimpleNamespace(is_global_zero=False), Mlp(), "fit")  # type: ignore[arg-type]
    assert bar.is_disabled
    bar.enable()
    assert bar.is_enabled


def test_the_version_of_the_run_stands_beside_the_metrics(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    class Versioned(sl.train.Logger):
        version = "version-12345"

    class Bare(ProgressBar):
        def get_metrics(self, trainer: Any, module: Any) -> dict[str, Any]:
            return {name: value for name, value in super().get_metrics(trainer, module).items() if name == "v_num"}

    new_trainer(tmp_path, max_epochs=1, logger=Versioned(), callbacks=Bare()).fit(Mlp(), train_loader(32))
    assert capsys.readouterr().out.startswith("epoch 1/1  v_num 2345  0.")


def test_results_are_a_table_with_a_column_for_each_loader(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = bare_trainer(enable_progress_bar=True)
    trainer.validate(Scripted([0.25], name="a[/b]" + "long" * 30), [numbers(1), numbers(1)])
    out = capsys.readouterr().out
    assert re.search(r"validate\s+┏━+┳━+┳━+┓\s+┃ metric\s+┃ loader 0 ┃ loader 1 ┃", out)
    assert out.count("0.25") == 2
    assert "a[/b]long" in out
    assert re.sub(r"[│\s]|0\.25", "", out).count("long") == 60


# ---- in a terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BARS)
def test_bars_move_and_go_and_lines_stay(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    terminal = open_terminal(monkeypatch)
    seen: dict[str, list[str]] = {}

    def look(name: str) -> Any:
        return lambda *_: seen.setdefault(name, [shown(line) for line in terminal.lines()])

    spies = [
        on_hook("on_sanity_check_end", look("sanity")),
        on_hook("on_train_batch_end", lambda t, m, o, b, i: seen.__setitem__(f"batch {i}", terminal.lines())),
        on_hook("on_validation_batch_end", lambda *_: seen.__setitem__("validation", terminal.lines())),
    ]
    trainer = bare_trainer(max_epochs=2, callbacks=[kind(), *spies])
    trainer.fit(Mlp(), train_loader(64, 16), val_loader(64))

    bar = seen["batch 1"][-1]
    assert shown(bar) == "epoch 2/2 2/4"
    assert "train_loss" in bar
    training, validation = (shown(line) for line in seen["validation"][1:])
    assert training.startswith("epoch 2/2 4/4")
    assert validation.startswith("Validation 2/2")
    assert [line.split("  ")[0] for line in terminal.lines()] == ["epoch 1/2", "epoch 2/2"]
    assert not any("/4" in line for line in terminal.lines())
    assert ("\x1b[?25l" in terminal.getvalue()) == (CURSOR_IS_BACK in terminal.getvalue())


@pytest.mark.parametrize("kind", BARS)
def test_what_is_printed_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    terminal = open_terminal(monkeypatch)
    screens: list[list[str]] = []

    def say(trainer: sl.Trainer, module: Any, _outputs: Any, _batch: Any, batch_idx: int) -> None:
        module.print("batch", batch_idx, "[/red]", sep="-")
        screens.append(terminal.lines())

    trainer = bare_trainer(max_epochs=1, callbacks=[kind(), on_hook("on_train_batch_end", say)])
    trainer.fit(Mlp(), train_loader(64, 16))
    assert screens[2][:3] == [f"batch-{i}-[/red]" for i in range(3)]
    assert "3/4" in screens[2][3]
    assert len(screens[2]) == 4
    assert terminal.lines()[:4] == [f"batch-{i}-[/red]" for i in range(4)]
    assert terminal.lines()[4].startswith("epoch 1/1  train_loss")


@pytest.mark.parametrize("kind", BARS)
def test_validation_test_and_prediction_have_bars_of_their_own(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    terminal = open_terminal(monkeypatch)
    seen: list[str] = []
    spy = {
        f"on_{name}_batch_end": lambda *_: seen.append(shown(terminal.lines()[-1]))
        for name in ("validation", "test", "predict")
    }
    trainer = bare_trainer(callbacks=[kind(), *[on_hook(name, function) for name, function in spy.items()]])
    trainer.validate(Scripted([1.0]), numbers(2), verbose=False)
    trainer.test(Scripted([1.0]), [numbers(1), numbers(2)], verbose=False)
    trainer.predict(Scripted(), numbers(2))
    assert seen == [
        "Validation 1/2", "Validation 2/2", "Testing loader 0 1/1", "Testing loader 1 1/2", "Testing loader 1 2/2",
        "Predicting 1/2", "Predicting 2/2",
    ]  # fmt: skip
    assert terminal.lines() == []


@pytest.mark.parametrize("kind", BARS)
def test_bars_may_be_left(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    terminal = open_terminal(monkeypatch)
    trainer = bare_trainer(max_epochs=2, callbacks=kind(leave=True))
    trainer.fit(Mlp(), train_loader(64, 16), val_loader(32))
    trainer.test(Mlp(), val_loader(32), verbose=False)
    first, second, test = (shown(line) for line in terminal.lines())
    assert first.startswith("epoch 1/2 4/4")
    assert second.startswith("epoch 2/2 4/4")
    assert "val_acc" in terminal.lines()[1]
    assert test == "Testing 1/1"


@pytest.mark.parametrize("kind", BARS)
def test_the_bar_goes_when_the_run_fails(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    terminal = open_terminal(monkeypatch)

    class Fails(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1:
                raise RuntimeError("no")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="no"):
        bare_trainer(max_epochs=1, callbacks=kind()).fit(Fails(), numbers(3))
    assert "1/3" in terminal.getvalue()
    assert terminal.lines() == []
    assert ("\x1b[?25l" in terminal.getvalue()) == (CURSOR_IS_BACK in terminal.getvalue())


@pytest.mark.parametrize("kind", BARS)
def test_a_loader_without_a_length_has_a_bar_without_an_end(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    terminal = open_terminal(monkeypatch)
    screens: list[str] = []
    spy = on_hook("on_train_batch_end", lambda *_: screens.append(shown(terminal.lines()[-1])))
    bare_trainer(max_epochs=1, callbacks=[kind(), spy]).fit(Scripted(), (batch for batch in numbers(2)))
    assert screens[1].startswith(("epoch 1/1 2/--", "epoch 1/1 2/?"))


@pytest.mark.parametrize("kind", BARS)
def test_a_run_that_goes_on_in_the_middle_of_an_epoch_has_a_bar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any
) -> None:
    terminal = open_terminal(monkeypatch)
    keep = sl.ModelCheckpoint(every_n_train_steps=3)
    trainer = new_trainer(tmp_path, max_epochs=1, max_steps=3, callbacks=keep)
    trainer.fit(Scripted(), numbers(5))
    screens: list[str] = []
    spy = on_hook("on_train_batch_end", lambda *_: screens.append(shown(terminal.lines()[-1])))
    new_trainer(tmp_path, max_epochs=1, callbacks=[kind(), spy]).fit(Scripted(), numbers(5), ckpt_path="last")
    assert screens == ["epoch 1/1 4/5", "epoch 1/1 5/5"]


def test_what_goes_to_a_file_does_not_come_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    say = on_hook("on_train_batch_end", lambda *_: print("hello"))
    bare_trainer(max_epochs=1, callbacks=[RichProgressBar(), say]).fit(Scripted(), numbers(2))
    assert file.getvalue().splitlines()[:2] == ["hello", "hello"]
    assert "hello" not in terminal.getvalue()


# ---- when it is drawn ------------------------------------------------------------------------------------------------


class Drawn(ProgressBar):
    """A bar of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.drawings: list[tuple[float, list[tuple[str, int, float]]]] = []
        self.clock = 0.0
        self.totals: set[tuple[float, ...]] = set()

    def can_draw(self) -> bool:
        return True

    def draw(self, bars: Iterable[Bar]) -> None:
        self.drawings.append((self.clock, [(bar.kind, bar.done, bar.total) for bar in bars]))
        self.totals.add((self.total_train_batches, self.total_val_batches, self.total_val_batches_current_dataloader))


def test_it_is_drawn_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Drawn()
    fake = types.SimpleNamespace(monotonic=lambda: bar.clock)
    monkeypatch.setattr("shipline.train.callbacks.progress.progress_bar.time", fake)

    class TakesTime(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            bar.clock += 0.03
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            bar.clock += 0.03

    bare_trainer(max_epochs=2, callbacks=bar).fit(TakesTime(), numbers(100), [numbers(20), numbers(10)])
    times = [time for time, _ in bar.drawings]
    assert min(b - a for a, b in itertools.pairwise(times)) >= 0.1
    assert bar.clock * 10 * 0.7 < len(times) <= bar.clock * 10
    assert bar.totals >= {(100, 30, 20), (100, 30, 10)}
    assert bar.drawings[-1][1][0] == ("train", 100, 100)


def test_a_bar_outside_of_a_run_has_no_trainer() -> None:
    with pytest.raises(TrainingError, match="Drawn has no trainer outside of a run"):
        _ = Drawn().trainer
    with pytest.raises(TrainingError, match="TQDMProgressBar has no bar for train at the moment"):
        _ = TQDMProgressBar().train_progress_bar


def test_a_bar_of_tqdm_can_be_changed_as_in_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)

    class Mine(TQDMProgressBar):
        def init_validation_tqdm(self) -> Any:
            bar = super().init_validation_tqdm()
            bar.bar_format = "CHECKING {n_fmt}"
            return bar

    totals: set[tuple[Any, Any]] = set()
    bar = Mine()
    spy = on_hook(
        "on_validation_batch_end", lambda *_: totals.add((bar.val_progress_bar.total, bar.val_progress_bar.n))
    )
    bare_trainer(callbacks=[bar, spy]).validate(Scripted([1.0]), numbers(2), verbose=False)
    assert totals == {(2, 1), (2, 2)}
    assert "CHECKING 2" in terminal.getvalue()


def test_tqdm_draws_each_nth_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    bare_trainer(max_epochs=1, callbacks=TQDMProgressBar(refresh_rate=3)).fit(Scripted(), numbers(8))
    drawn = set(re.findall(r"(\d)/8", terminal.getvalue()))
    assert drawn == {"0", "3", "6", "8"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RichProgressBar(refresh_rate=-1), "RichProgressBar has refresh_rate=-1; set drawings a second"),
        (lambda: TQDMProgressBar(process_position=-1), "TQDMProgressBar has process_position=-1; set a whole number"),
        (lambda: TQDMProgressBar(refersh_rate=1), "no option 'refersh_rate'. Did you mean 'refresh_rate'"),
    ],
)
def test_options_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_tqdm_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(MissingExtraError, match=r"needs tqdm. Run: pip install 'shipline\[train\]'"):
        bare_trainer(max_epochs=1, callbacks=TQDMProgressBar()).fit(Scripted(), numbers(1))
