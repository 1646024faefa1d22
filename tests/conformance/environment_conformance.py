"""What every cluster environment must do."""

from __future__ import annotations

from typing import Any

import pytest

import shipline as sl
from shipline.errors import ConfigError
from shipline.plugins import load
from shipline.train.environments import ClusterEnvironment, pick_environment


class EnvironmentConformance:
    """Inherit, say what it sets for four processes on two machines, and give a fixture `clean`: none of it set."""

    #: Its name among the plug-ins, and its class.
    name: str
    cls: type[ClusterEnvironment]
    #: Number, number on the machine, and the machine's number, of each process.
    places = [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)]

    def variables(self, rank: int, size: int = 4) -> dict[str, str]:
        """What a process with this number finds in its environment, of `size` in all."""
        raise NotImplementedError

    @pytest.fixture
    def start(self, clean: pytest.MonkeyPatch) -> Any:
        """Makes this the process with that number."""

        def place(rank: int, size: int = 4) -> ClusterEnvironment | None:
            for name, value in self.variables(rank, size).items():
                clean.setenv(name, value)
            return pick_environment()

        return place

    def test_it_is_found_by_its_name(self) -> None:
        assert load("environment", self.name) is self.cls

    @pytest.mark.usefixtures("clean")
    def test_it_is_not_there_unless_it_has_started_the_process(self) -> None:
        assert not self.cls.detect()
        assert not isinstance(pick_environment(), self.cls)

    def test_each_process_knows_its_place(self, start: Any) -> None:
        found = []
        meeting = set()
        for rank in range(4):
            environment = start(rank)
            assert type(environment) is self.cls
            assert environment.world_size() == 4
            beside = [place for place in self.places if place[2] == self.places[rank][2]]
            assert environment.local_world_size() in (None, len(beside))
            found.append((environment.global_rank(), environment.local_rank(), environment.node_rank()))
            meeting.add((environment.main_address, environment.main_port))
        assert found == self.places
        [(address, port)] = meeting
        assert address
        assert 1024 <= port < 2**16

    def test_a_trainer_is_one_of_them(self, start: Any) -> None:
        start(3)
        for options in ({}, {"workers": 4}, {"devices": 2, "num_nodes": 2}, {"devices": -1}, {"workers": (2, 8)}):
            trainer = sl.Trainer(accelerator="cpu", **options)
            place = (trainer.global_rank, trainer.local_rank, trainer.node_rank)
            assert (*place, trainer.world_size, trainer.workers) == (*self.places[3], 4, 4)
            assert not trainer.is_global_zero
        assert sl.Trainer(accelerator="cpu", strategy="single_device").world_size == 1

    def test_settings_that_contradict_it(self, start: Any) -> None:
        start(0)
        said = rf", but {self.cls.name} has started 4 processes( on \d machines)?: leave the setting out, or start as"
        with pytest.raises(ConfigError, match=rf"Trainer has workers=3{said}"):
            sl.Trainer(workers=3)
        with pytest.raises(ConfigError, match=rf"Trainer has devices=3 on num_nodes=1{said}"):
            sl.Trainer(devices=3)
        with pytest.raises(ConfigError, match=rf"Trainer has workers=\(5, 8\){said}"):
            sl.Trainer(workers=(5, 8))

    def test_one_process_is_alone(self, start: Any) -> None:
        start(0, 1)
        trainer = sl.Trainer(accelerator="cpu")
        assert (trainer.workers, trainer.world_size, trainer.started_by) == (1, 1, None)
        assert sl.Trainer(accelerator="cpu", workers=2).started_by is None  # those are Ray's

    def test_a_place_that_cannot_be(self, start: Any) -> None:
        with pytest.raises(ConfigError, match=rf"{self.cls.name} says that this is process 4 of 4: .* from 0\."):
            start(4)

    def test_a_queue_has_a_name_for_the_job(self, start: Any) -> None:
        environment = start(1)
        assert (environment.job is None) == (environment.requeue_signal is None)
        assert not environment.restarted()
