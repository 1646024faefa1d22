"""Steps from a text to the inputs of a language model."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from shipline import plugins
from shipline.errors import ProcessingError
from shipline.processing.step import Step

_ATTRIBUTES = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class Tokenize(Step):
    """A text -> int64 [max_length] for each of the inputs, by name: longer texts are cut, shorter ones padded.

    With `pad_to_multiple_of` a row is only as long as its text needs, rounded up to a multiple of that: a model that is
    free in its length computes less for short texts.

    Args:
        tokenizer: a `tokenizer.json` (WordPiece, BPE, Unigram) as the `tokenizers` library writes it; what it says of
            truncation and padding does not count.
        max_length: tokens of a row, special ones included.
        inputs: what the model takes.
        pad_token: what fills a row; the attention mask is 0 there.
        padding_side: where it is filled.
        pad_to_multiple_of: rows have the next multiple of so many tokens, `max_length` at most; None: all of them
            `max_length`.
        max_characters: longer texts are refused before anything looks at them.
    """

    NAME: ClassVar[str] = "tokenize"
    TAKES: ClassVar[dict[str, Any]] = {"type": "string"}

    tokenizer: str = Field(repr=False)
    max_length: int = Field(ge=1, le=65536)
    inputs: tuple[Literal["input_ids", "attention_mask", "token_type_ids"], ...] = Field(
        default=("input_ids", "attention_mask"), min_length=1
    )
    pad_token: str = "[PAD]"  # noqa: S105 -- no password
    padding_side: Literal["left", "right"] = "right"
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
    max_characters: int = Field(default=100_000, ge=1)

    @model_validator(mode="after")
    def _whole(self) -> Tokenize:
        if len(set(self.inputs)) < len(self.inputs):
            raise ValueError("each input must occur once")
        _ = self._encoder
        return self

    @cached_property
    def _encoder(self) -> Any:
        cls = plugins.load_target("tokenizers:Tokenizer")
        try:
            encoder = cls.from_str(self.tokenizer)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"tokenizer is no tokenizer.json: {str(error)[:200]}") from error
        if encoder.token_to_id(self.pad_token) is None:
            raise ValueError(f"pad_token {self.pad_token!r} is not in the tokenizer's vocabulary")
        special = encoder.num_special_tokens_to_add(is_pair=False)
        if special >= self.max_length:
            raise ValueError(f"max_length {self.max_length} leaves no room beside {special} special tokens")
        encoder.enable_truncation(self.max_length)
        encoder.no_padding()
        return encoder

    @property
    def longest(self) -> int | None:
        """`max_length`, where rows are padded less."""
        return self.max_length if (self.pad_to_multiple_of or self.max_length) < self.max_length else None

    def whole(self) -> Tokenize:
        """Return the step that pads all rows to `max_length`."""
        return self.model_copy(update={"pad_to_multiple_of": None})

    def trim(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cut rows of `whole()` where no text is: by their mask, or where the model takes none, by `pad_token`."""
        if "attention_mask" in rows:
            filled = rows["attention_mask"] != 0
        elif "input_ids" in rows:
            filled = rows["input_ids"] != self._encoder.token_to_id(self.pad_token)
        else:
            return rows
        right = self.padding_side == "right"
        places = np.flatnonzero(filled.any(axis=0) if right else filled.any(axis=0)[::-1])
        length = self._padded(int(places[-1]) + 1 if len(places) else 0)
        cut = slice(length) if right else slice(-length, None)
        return {name: np.ascontiguousarray(row[:, cut]) for name, row in rows.items()}

    def __call__(self, value: Any) -> dict[str, np.ndarray]:
        if not isinstance(value, str):
            raise ProcessingError(f"Expected a text; got {type(value).__name__}. Send a JSON string.")
        if len(value) > self.max_characters:
            raise ProcessingError(f"The text has {len(value)} characters; at most {self.max_characters} are allowed.")
        try:
            found = self._encoder.encode(value)
        except Exception as error:  # halves of surrogate pairs, which JSON can hold and UTF-8 cannot
            raise ProcessingError("The text cannot be tokenised: it is no valid Unicode.") from error
        found.pad(
            self._padded(len(found.ids)),
            direction=self.padding_side,
            pad_id=self._encoder.token_to_id(self.pad_token),
            pad_token=self.pad_token,
        )
        return {name: np.asarray(getattr(found, _ATTRIBUTES[name]), np.int64) for name in self.inputs}

    def _padded(self, tokens: int) -> int:
        """How long the row of so many tokens is."""
        unit = self.pad_to_multiple_of
        return self.max_length if unit is None else min(-(-max(tokens, 1) // unit) * unit, self.max_length)
