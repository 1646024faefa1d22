"""Datasets of Ray in place of loaders: by one process and by two workers; see ray_rows_runs.py, which runs it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import found_by

from shipline.errors import ConfigError
from shipline.train import RayRows

SCRIPT = Path(__file__).with_name("ray_rows_runs.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each run."""
    return found_by(SCRIPT, tmp_path_factory.mktemp("ray_rows"))


def of_epoch(worker: list[Any], epoch: int) -> list[int]:
    """The rows of a worker in an epoch."""
    return [row for number, _, rows in worker for row in rows if number == epoch]


@pytest.mark.ray
@pytest.mark.timeout(900)
class TestRuns:
    def test_batches_are_those_of_ray(self, found: dict[str, Any]) -> None:
        """A bare dataset gives dicts of 256 rows, as iter_torch_batches does; columns make tuples of them."""
        batches = found["batches"]
        assert batches["bare"] == {
            "image": ["torch.float32", [101, 64]], "digit": ["torch.int64", [101]], "row": ["torch.int64", [101]],
        }  # fmt: skip
        assert batches["chosen"] == [["torch.float32", [4]], ["torch.float32", [4, 64]]]
        assert batches["kept"] is False

    def test_each_epoch_has_an_order_of_its_own(self, found: dict[str, Any]) -> None:
        first, second, again = found["batches"]["orders"]
        assert sorted(first) == sorted(second) == list(range(101))
        assert first != second
        assert first == again

    def test_two_workers_share_the_rows(self, found: dict[str, Any]) -> None:
        """Equally many for each, none twice, and the one that is over is left out; also of several side by side."""
        workers, metrics = found["fitted"]
        for epoch in (0, 1):
            shares = [of_epoch(worker, epoch) for worker in workers]
            assert [len(share) for share in shares] == [26, 26]
            rows = {*shares[0], *shares[1]}
            assert len(rows) == 52
            assert rows <= set(range(53))
        assert metrics["small"] == 2 * 4 * 10  # the shorter one begins anew with each of four batches
        assert metrics["rows"] == 37  # of one batch of 256, which the first worker had

    def test_evaluation_is_that_of_one_process(self, found: dict[str, Any]) -> None:
        one, two = found["evaluated"]
        assert one == two
        assert [number for number, _ in one[1]] == list(range(5))
        assert [row for _, rows in one[1] for row in rows] == list(range(1400, 1437))

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_run_that_is_resumed_is_the_whole_one(self, found: dict[str, Any], workers: int) -> None:
        """In the midst of an epoch, with shuffled rows and dropout: the same rows, and the same weights bit for bit."""
        far, whole, again = found["resumed"][str(workers)]
        assert far == 0
        for all_batches, rest in zip(whole, again, strict=True):
            assert len(rest) == (4, 3)[workers - 1]
            assert rest == all_batches[-len(rest) :]

    def test_workers_with_parts_of_one_model_see_the_same_rows(self, found: dict[str, Any]) -> None:
        one, other = found["cut"]
        assert one == other
        assert of_epoch(one, 0) == list(range(20))

    def test_a_cluster_without_a_cpu_for_ray_data_is_refused(self, found: dict[str, Any]) -> None:
        assert found["refused"].startswith(
            "ConfigError: The cluster has 4 CPUs, of which the workers of this run have 4"
        )
        assert found["refused"].endswith("RayCluster(data_cpus=1).")

    def test_a_cluster_of_the_runs_own_has_one_more(self, found: dict[str, Any]) -> None:
        assert [len(of_epoch(worker, 0)) for worker in found["own"]] == [50, 50]


class Dataset:
    """What this process takes for a dataset of Ray, which is not imported here."""

    __module__ = "ray.data.dataset"


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ([1, 2], {}, r"RayRows has a list; give a ray\.data\.Dataset, such as ray\.data\.read_parquet"),
        (Dataset(), {"batch_size": 0}, "batch_size=0; set a number of rows from 1 on"),
        (Dataset(), {"shuffle": True}, "shuffle=True; set a number of rows from 0 on"),
        (Dataset(), {"drop_lats": True}, "RayRows has drop_lats. Did you mean 'drop_last'"),
        (Dataset(), {"columns": "image"}, r"columns='image'; set a list of names, such as \['image'\]"),
    ],
)
def test_what_means_nothing_is_refused(dataset: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RayRows(dataset, **options)
