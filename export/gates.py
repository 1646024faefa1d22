"""The gates of the proof. Each measures one thing through the runtime that will serve, and gives a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shipline.artifact import Verdict
from shipline.backends.base import Arrays
from shipline.errors import ConfigError, GateError
from shipline.export.latency import Latency, batch_of
from shipline.export.lengths import OTHERWISE, Shorter, usual
from shipline.export.recipe import Recipe
from shipline.export.rows import Rows
from shipline.export.runtime import Runs, Runtime
from shipline.export.target import Target
from shipline.signature import Signature

if TYPE_CHECKING:
    from shipline.export.comparison import Scored

INVARIANCE_ROWS = 8
#: As reports list them; a search asks those that cost least first.
ORDER = (
    "parity",
    "batch_invariance",
    "padding",
    "not_finite",
    "determinism",
    "metric",
    "classes",
    "latency",
    "size",
    "target",
    "rebuilt",
    "preprocessing",
)


@dataclass(frozen=True)
class Worst:
    """Where two sets of outputs differ most: the difference in parts of the output's largest value, and the place.

    `row` counts all rows, or where `length` is given those that are so long.
    """

    difference: float
    output: str
    row: int
    batch: int
    length: int | None = None

    def __str__(self) -> str:
        among = "" if self.length is None else f" of those of a length of {self.length}"
        return f"row {self.row}{among}, output {self.output!r}, in a batch of {self.batch}"


def scales(rows: Rows, signature: Signature) -> dict[str, float]:
    """Return the largest absolute value of each output of the trained module, at least 1e-6."""
    pairs = zip(signature.outputs, rows.outputs, strict=True)
    return {spec.name: max(float(np.abs(np.where(np.isfinite(out), out, 0)).max()), 1e-6) for spec, out in pairs}


def parity(
    runtime: Runs,
    rows: Rows,
    signature: Signature,
    largest_batch: int,
    limit: float,
    shorter: Sequence[Shorter] = (),
) -> tuple[Verdict, Worst]:
    """Outputs equal the trained module's, in batches of 1, 2, 3, the largest, one less, and what remains then.

    Of rows that differ in length, those of the usual one, where there are enough, stand for most in batches between.
    """
    unit, short = scales(rows, signature), usual(shorter) if shorter else None
    found = []
    for batch, count in _sizes(largest_batch, len(rows)):
        if short is not None and 1 < batch < largest_batch <= len(short):
            found.append(_largest(runtime, short, unit, batch, count))
            count = batch  # noqa: PLW2901
        found.append(_largest(runtime, rows, unit, batch, count))
    worst = max(found, key=lambda place: place.difference)
    text = (
        f"outputs differ from the trained module's by {worst.difference:.2g} of their largest value at most ({worst})"
    )
    text += f"; {limit:g} is allowed"
    return Verdict(
        gate="parity", passed=worst.difference <= limit, measured=_finite(worst.difference), limit=limit, message=text
    ), worst


def batch_invariance(
    runtime: Runtime,
    rows: Rows,
    signature: Signature,
    largest_batch: int,
    limit: float,
    shorter: Sequence[Shorter] = (),
) -> Verdict:
    """A row's answer does not depend on its batch-mates, wherever in the batch it stands.

    Of rows that differ in length, those of the usual one, where there are several, are company for each other.
    """
    short = usual(shorter) if shorter else None
    company = rows if short is None or len(short) == 1 else short
    inputs, unit = company.inputs, scales(rows, signature)
    count, batch = len(company), largest_batch
    worst = Worst(0.0, signature.outputs[0].name, 0, batch)
    for row in np.linspace(0, count - 1, min(count, INVARIANCE_ROWS)).astype(int).tolist():
        alone = runtime.run({name: array[row : row + 1] for name, array in inputs.items()})
        for place in sorted({0, batch // 2, batch - 1}):
            mates = (np.arange(batch) - place + row) % count  # the row itself at `place`, its neighbours around it
            together = runtime.run({name: array[mates] for name, array in inputs.items()})
            for spec, one, many in zip(signature.outputs, alone, together, strict=True):
                difference = largest_difference(many[place], one[0]) / unit[spec.name]
                if difference > worst.difference:
                    worst = Worst(difference, spec.name, row, batch, _length(company))
    passed = worst.difference <= limit
    text = f"a row's answer alone and among others differs by {worst.difference:.2g} of the largest value at most"
    if not passed:
        text += f" ({worst}); {limit:g} is allowed"
    return Verdict(
        gate="batch_invariance",
        passed=passed,
        measured=_finite(worst.difference),
        limit=limit,
        message=text,
    )


def padding(
    runtime: Runtime, shorter: Sequence[Shorter], rows: Rows, signature: Signature, largest_batch: int, limit: float
) -> Verdict:
    """Rows that are padded no more than they need are answered as the trained module answers them at full length."""
    unit = scales(rows, signature)
    worst, where = 0.0, shorter[0].length
    for each in shorter:
        for start, batch in [(0, 1), *((at, largest_batch) for at in range(0, len(each), largest_batch))]:
            part = slice(start, start + batch)
            found = runtime.run({name: array[part] for name, array in each.inputs.items()})
            for spec, got, want in zip(signature.outputs, found, each.outputs, strict=True):
                difference = largest_difference(got, want[part]) / unit[spec.name]
                if difference > worst:
                    worst, where = difference, each.length
    lengths, measured = ", ".join(str(each.length) for each in shorter), usual(shorter)
    text = f"rows padded to {lengths} instead of {next(iter(rows.inputs.values())).shape[1]} are answered as the "
    text += f"trained module does in full: they differ by {worst:.2g} of the largest value at most (length {where})"
    text += f"; {limit:g} is allowed; times are measured with rows of {measured.length}"
    text += "" if (passed := worst <= limit) else f". {OTHERWISE.removesuffix('.')}"
    return Verdict(gate="padding", passed=passed, measured=_finite(worst), limit=limit, message=text)


def not_finite(runtime: Runtime, rows: Rows, signature: Signature, largest_batch: int, limit: float) -> Verdict | None:
    """A row of NaN or infinity spoils no answer but its own; None where no input can hold one."""
    floats = [name for name, array in rows.inputs.items() if array.dtype.kind == "f"]
    if not floats or largest_batch < 2:
        return None
    inputs = batch_of(rows.inputs, largest_batch)
    clean, unit, worst = runtime.run(inputs), scales(rows, signature), Worst(0.0, "", 0, largest_batch)
    own = "its own says so"
    for value in (np.nan, np.inf):
        bad = {name: array.copy() for name, array in inputs.items()}
        for name in floats:
            bad[name][0] = value
        try:
            found = runtime.run(bad)
        except GateError:  # such as an index that is made of it
            own = "a batch with one fails, and servers run it in halves until that row stands alone"
            continue
        for spec, one, many in zip(signature.outputs, clean, found, strict=True):
            if np.isfinite(many[0]).all():
                own = "its own is made of ordinary numbers, as if nothing were wrong"
            for row in range(1, largest_batch):
                difference = largest_difference(many[row], one[row]) / unit[spec.name]
                if difference > worst.difference:
                    worst = Worst(difference, spec.name, row, largest_batch)
    passed = worst.difference <= limit
    text = "a row of NaN or infinity changes no other row's answer"
    if not passed:
        text = f"a row of NaN or infinity changes another row's answer by {worst.difference:.2g} ({worst})"
    message = f"{text}; {own}"
    return Verdict(gate="not_finite", passed=passed, measured=_finite(worst.difference), limit=limit, message=message)


def determinism(
    runtime: Runtime,
    others: dict[int, Runtime],
    rows: Rows,
    signature: Signature,
    batch: int,
    limit: float,
    shorter: Sequence[Shorter] = (),
) -> Verdict:
    """The same rows, those of the usual length, are answered alike again and again, and with other threads."""
    inputs, unit = batch_of((usual(shorter) if shorter else rows).inputs, batch), scales(rows, signature)
    first = runtime.run(inputs)
    runs = [("run again", runtime)] * 3 + [(f"with {threads} threads", other) for threads, other in others.items()]
    worst, where = 0.0, "run again"
    for name, each in runs:
        for spec, one, other in zip(signature.outputs, first, each.run(inputs), strict=True):
            difference = largest_difference(one, other) / unit[spec.name]
            if difference > worst:
                worst, where = difference, name
    text = f"the same rows {'are answered alike' if not worst else f'differ by {worst:.2g} of the largest value'}"
    text += f" ({where})" if worst else ", run again" + "".join(f" and with {threads} threads" for threads in others)
    return Verdict(gate="determinism", passed=worst <= limit, measured=_finite(worst), limit=limit, message=text)


def metric(name: str, mode: str, trained: float, exported: float, allowed: float) -> Verdict:
    """The task metric, by the module's own validation step, is not worse than allowed."""
    drop = trained - exported if mode == "max" else exported - trained
    passed = math.isfinite(exported) and drop <= allowed
    text = f"{name} is {exported:.6g}, the trained module's is {trained:.6g}: "
    text += "no worse" if drop <= 0 else f"worse by {drop:.6g}"
    text += f"; {allowed:g} is allowed"
    return Verdict(gate="metric", passed=passed, measured=_finite(drop), limit=allowed, message=text)


def classes(worst: Scored | None, allowed: float) -> Verdict:
    """No class is answered worse than allowed, however good the others are."""
    if worst is None:
        raise ConfigError(
            f"Recipe has max_class_drop={allowed:g}, and the right classes of the validation rows are not known. Let "
            "validation_step be given batches of rows and whole numbers, or rows=(inputs, targets) with a metric; or "
            "leave max_class_drop out."
        )
    text = f"of class {worst.name!r} {worst.right} of {worst.rows} rows are answered right, by the trained module "
    text += (
        f"{worst.trained}: {'worse' if worst.drop > 0 else 'no worse'}, and no class loses more; {allowed:g} is allowed"
    )
    return Verdict(gate="classes", passed=worst.drop <= allowed, measured=worst.drop, limit=allowed, message=text)


def rebuilt(name: str, mode: str, recorded: float, found: float, allowed: float) -> Verdict:
    """The module rebuilt from the checkpoint is as good as the one that was trained: it is the same one."""
    drop = recorded - found if mode == "max" else found - recorded
    text = f"{name} of the rebuilt module is {found:.6g}, when its checkpoint was made it was {recorded:.6g}"
    passed = math.isfinite(drop) and drop <= allowed
    if not passed:
        text += f"; it may lose {allowed:g}: class, arguments and data must be those of the run"
    return Verdict(gate="rebuilt", passed=passed, measured=_finite(drop), limit=allowed, message=text)


def latency(candidate: list[Latency], baseline: list[Latency], recipe: Recipe) -> Verdict:
    """The geometric mean, over the batch sizes, of how many times as fast as float32 the candidate is."""
    ratios = [slow.median_ms / fast.median_ms for fast, slow in zip(candidate, baseline, strict=True)]
    speedup = math.prod(ratios) ** (1 / len(ratios))
    each = ", ".join(f"{ratio:.2f}x at batch {item.batch}" for ratio, item in zip(ratios, candidate, strict=True))
    text = f"{speedup:.2f} times as fast as float32 on this machine ({each}); {recipe.min_speedup:g} is needed"
    return Verdict(
        gate="latency", passed=speedup >= recipe.min_speedup, measured=speedup, limit=recipe.min_speedup, message=text
    )


def size(candidate: int, baseline: int) -> Verdict:
    """The candidate is smaller than the float32 graph."""
    ratio = candidate / baseline
    text = f"{candidate:,} bytes, {ratio:.2f} of the float32 graph's {baseline:,}; less is needed"
    return Verdict(gate="size", passed=ratio < 1, measured=ratio, limit=1.0, message=text)


def target(size: int, latencies: list[Latency], machine: Target) -> Verdict:
    """It fits the machine that will serve: its size, and the time of one row, as it is measured here."""
    taken = latencies[0].median_ms
    used = machine.over(size, taken)
    text = f"{size:,} bytes and {taken:.3g} ms a row on this machine; {machine} is allowed"
    return Verdict(gate="target", passed=used <= 1, measured=used, limit=1.0, message=text)


def preprocessing(seen: list[bool]) -> Verdict:
    """The processing makes of raw validation rows exactly what the module was validated on."""
    found, tried = sum(seen), len(seen)
    text = f"{found} of {tried} raw rows, once processed, are rows that the module was validated on"
    if found < tried:
        text += f"; raw row {seen.index(False)} is the first that is not: let the DataModule make its rows with its "
        text += "`processing`, and `raw_rows` return raw validation rows"
    return Verdict(gate="preprocessing", passed=found == tried, measured=found / tried, limit=1.0, message=text)


def refuse_failed(what: str, verdicts: Sequence[Verdict], nearest: Sequence[str] = ()) -> None:
    """Raise GateError where a verdict speaks against it, with all that do, and with what came nearest of a search."""
    if failed := [verdict for verdict in verdicts if not verdict.passed]:
        lines = [f"  {verdict.gate}: {verdict.message}." for verdict in failed]
        lines += ["Nearest, and what each lacks:", *(f"  {line}." for line in nearest)] if nearest else []
        said = "\n".join(lines)
        raise GateError(f"{what} failed {len(failed)} of {len(verdicts)} gates; nothing was published:\n{said}")


def _sizes(largest: int, rows: int) -> list[tuple[int, int]]:
    """Return the batches of the parity gate, each with how many rows it is tried on: small ones of many take long."""
    odd = {3: 24, largest - 1: largest + largest // 2}  # which ends in a smaller batch, as the last of a file does
    counts = {batch: count for batch, count in odd.items() if 0 < batch < largest}
    return sorted((counts | {1: 32, 2: 64} | {largest: rows}).items())


def _largest(runtime: Runs, rows: Rows | Shorter, unit: dict[str, float], batch: int, count: int) -> Worst:
    """Where the runtime differs most from the trained module over the first `count` rows, in batches of `batch`."""
    inputs, outputs, length = rows.inputs, rows.outputs, _length(rows)
    worst = Worst(-1.0, "", 0, batch)
    count = min(count, len(rows))
    for start in range(0, count, batch):
        stop = min(start + batch, count)
        chunk: Arrays = {name: array[start:stop] for name, array in inputs.items()}
        for name, got, want in zip(unit, runtime.run(chunk), outputs, strict=True):
            for row, (one, other) in enumerate(zip(got, want[start:stop], strict=True), start):
                difference = largest_difference(one, other) / unit[name]
                if difference > worst.difference:
                    worst = Worst(difference, name, row, len(got), length)
    return worst


def _length(rows: Rows | Shorter) -> int | None:
    return rows.length if isinstance(rows, Shorter) else None


def largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest absolute difference; infinite for other shapes, and where only one of two values is finite."""
    return float(differences(one, other).max(initial=0.0)) if one.shape == other.shape else math.inf


def differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The absolute differences of two arrays of one shape; infinite where only one of two values is finite."""
    same = (one == other) | (np.isnan(one) & np.isnan(other)) if one.dtype.kind == "f" else one == other
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
