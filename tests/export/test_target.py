"""A target is read from one text, and says what fits it."""

from __future__ import annotations

import pytest

from shipline.export import processor
from shipline.export.target import INSTRUCTIONS, Target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("20MB", Target(max_bytes=20e6)),
        ("1.5GiB, 250us", Target(max_bytes=1.5 * 2**30, max_ms=0.25)),
        ("AVX2,5ms", Target(max_ms=5, instructions="avx2")),
        (".5 s,amx,300 kB", Target(max_bytes=300e3, max_ms=500, instructions="amx")),
    ],
)
def test_a_text_is_a_target(text: str, target: Target) -> None:
    assert Target.parse(text) == target


def test_the_tightest_limit_counts() -> None:
    target = Target(max_bytes=1000, max_ms=2)
    assert target.over(500, 1) == target.over(500) == 0.5
    assert target.over(500, 3) == 1.5
    assert Target().over(10**12, 10**6) == 0


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize("here", [True, False])
def test_this_machine_must_be_able_to_prove_it(name: str, here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that are cut here are so in the proof; bfloat16 that is not here cannot be measured."""
    monkeypatch.setattr(processor, "cuts_sums", lambda: here)
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: here)
    target, known = Target(instructions=name), INSTRUCTIONS[name]
    assert target.cuts_sums == (here or known.cuts_sums)
    assert target.bfloat16 == (here and known.bfloat16)
    assert (Target().cuts_sums, Target().bfloat16) == (here, here)
