"""How a candidate's answers compare with the trained module's, row by row and class by class: what reports show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from shipline.backends.base import Arrays
from shipline.export.gates import differences, largest_difference, scales
from shipline.export.rows import Rows
from shipline.export.runtime import Runs
from shipline.processing import Labels, Processing
from shipline.signature import Signature

WORST_ROWS = 5
MOST_CLASSES = 1000
#: Numbers of an answer that are written down: the best classes, or else the first.
BEST, FIRST = 3, 6


@dataclass(frozen=True)
class Differing:
    """A row, and where its answers differ most.

    Args:
        row: its number among the proof rows.
        difference: in parts of the output's largest value.
        output: which one it is.
        element: the place in that output's answer for the row; none where the shapes differ.
        values: the trained module's number there, and the candidate's.
        trained: the trained module's answer, in short.
        found: the candidate's.
    """

    row: int
    difference: float
    output: str
    element: tuple[int, ...]
    values: tuple[float, ...]
    trained: str
    found: str


@dataclass(frozen=True)
class OfClass:
    """One class: in how many rows the trained module answers it, and in how many of these the candidate does, too."""

    number: int
    name: str
    rows: int
    agreed: int


@dataclass(frozen=True)
class Agreement:
    """Where an output's largest element stands, which is what a classifier answers, in both sets of answers."""

    output: str
    classes: list[OfClass]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(each.rows for each in self.classes)

    @property
    def agreed(self) -> int:
        """In how many of them both answer the same class."""
        return sum(each.agreed for each in self.classes)


@dataclass(frozen=True)
class Scored:
    """One class, where the right answers are known: its rows, and how many each of the two answers right."""

    number: int
    name: str
    rows: int
    trained: int
    right: int

    @property
    def drop(self) -> float:
        """The share of its rows by which it is answered worse."""
        return (self.trained - self.right) / self.rows


@dataclass(frozen=True)
class Comparison:
    """How answers compare.

    Args:
        worst: the rows that differ most, the worst first.
        agreement: in each output that can be a classifier's.
        scores: of each class, where the right ones are known and one output can be a classifier's.
    """

    worst: list[Differing]
    agreement: list[Agreement]
    scores: list[Scored] = field(default_factory=list)

    @property
    def worst_class(self) -> Scored | None:
        """The class that loses most; None where the right ones are not known."""
        return max(self.scores, key=lambda each: each.drop, default=None)


@dataclass(frozen=True)
class _Place:
    """The output in which a row differs most, with both answers."""

    row: int
    output: int
    difference: float
    own: np.ndarray
    found: np.ndarray


def compare(
    runtime: Runs, rows: Rows, signature: Signature, batch: int, processing: Processing | None = None
) -> Comparison:
    """Compare the answers to all rows, in batches of `batch`; the processing may know what classes are called."""
    inputs, outputs, unit = rows.inputs, rows.outputs, list(scales(rows, signature).values())
    classes = [_class_names(output, processing if i == 0 else None) for i, output in enumerate(outputs)]
    answered: list[list[np.ndarray]] = [[] for _ in outputs]
    worst: list[_Place] = []
    for start in range(0, len(rows), batch):
        chunk: Arrays = {name: array[start : start + batch] for name, array in inputs.items()}
        own, found = [output[start : start + batch] for output in outputs], runtime.run(chunk)
        worst = sorted([*worst, *_places(start, own, found, unit)], key=lambda place: -place.difference)[:WORST_ROWS]
        for i, names in enumerate(classes):
            answered[i].append(_answered(found[i], len(names)))
    names_of = [spec.name for spec in signature.outputs]
    both = {
        i: (_answered(outputs[i], len(names)), np.concatenate(answered[i])) for i, names in enumerate(classes) if names
    }
    return Comparison(
        [_told(each, names_of[each.output], classes[each.output]) for each in worst if each.difference],
        [_agreement(names_of[i], classes[i], *pair) for i, pair in both.items()],
        [each for i, pair in both.items() if len(both) == 1 for each in _scores(classes[i], rows.labels, *pair)],
    )


def _places(start: int, own: list[np.ndarray], found: list[np.ndarray], unit: list[float]) -> Iterator[_Place]:
    """Where each row differs most."""
    for row in range(len(own[0])):
        apart = [largest_difference(b[row], a[row]) / one for a, b, one in zip(own, found, unit, strict=True)]
        output = int(np.argmax(apart))
        yield _Place(start + row, output, apart[output], own[output][row], found[output][row])


def _told(place: _Place, output: str, classes: Sequence[str]) -> Differing:
    own, found = place.own, place.found
    element: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    if own.shape == found.shape:
        element = tuple(map(int, np.unravel_index(differences(found, own).argmax(), own.shape)))
        values = (float(own[element]), float(found[element]))
    texts = [_in_short(answer, classes) for answer in (own, found)]
    return Differing(place.row, place.difference, output, element, values, *texts)


def _in_short(answer: np.ndarray, classes: Sequence[str]) -> str:
    """The best classes, or the first numbers."""
    numbers = answer.ravel().tolist()
    if len(classes) == len(numbers):
        best = np.argsort(-answer, kind="stable")[:BEST].tolist()
        return ", ".join(f"{classes[i]}: {numbers[i]:.4g}" for i in best) + (", …" if len(numbers) > BEST else "")
    text = ", ".join(f"{number:.4g}" for number in numbers[:FIRST])
    return text if len(numbers) <= FIRST else f"{text}, … ({len(numbers):,} numbers)"


def _class_names(output: np.ndarray, processing: Processing | None) -> tuple[str, ...]:
    """What an output's classes are called, else their numbers; none where it is no classifier's."""
    if output.ndim != 2 or output.dtype.kind != "f" or not 2 <= output.shape[1] <= MOST_CLASSES:
        return ()
    if output.min() < 0 and np.allclose(np.linalg.norm(output, axis=1), 1, atol=1e-3):
        return ()  # of length one, and no probabilities: an embedding
    labels = [step.names for step in (processing.after if processing else ()) if isinstance(step, Labels)]
    if labels and len(labels[0]) == output.shape[1]:
        return labels[0]
    return tuple(map(str, range(output.shape[1])))


def _answered(scores: np.ndarray, classes: int) -> np.ndarray:
    """The class that each row's largest score is of; -1, which is none, where one is NaN or they are not so many."""
    if scores.shape[1:] != (classes,):
        return np.full(len(scores), -1)
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


def _agreement(output: str, names: Sequence[str], own: np.ndarray, found: np.ndarray) -> Agreement:
    rows, agreed = (np.bincount(each, minlength=len(names)).tolist() for each in (own, own[own == found]))
    return Agreement(output, [OfClass(i, name, rows[i], agreed[i]) for i, name in enumerate(names) if rows[i]])


def _scores(names: Sequence[str], labels: np.ndarray | None, own: np.ndarray, found: np.ndarray) -> Iterator[Scored]:
    """Each class that a row is of; none where the labels are no classes of this output."""
    if labels is None or labels.min() < 0 or labels.max() >= len(names):
        return
    for number in np.unique(labels).tolist():
        of_class = labels == number
        right = [int((answers[of_class] == number).sum()) for answers in (own, found)]
        yield Scored(number, names[number], int(of_class.sum()), *right)
