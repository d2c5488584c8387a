"""The numbers that the files about a model may state, as types of msgspec; see `data.files.limits`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from data.files import limits

Layers = Annotated[int, Meta(ge=1, le=limits.LAYERS)]
Width = Annotated[int, Meta(ge=1, le=limits.WIDTH)]
Vocabulary = Annotated[int, Meta(ge=1, le=limits.VOCABULARY)]
Positions = Annotated[int, Meta(ge=1, le=limits.POSITIONS)]
# A probability of dropping, or the small number in a norm.
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Epsilon = Annotated[float, Meta(gt=0, lt=1)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]
# The base of rotary frequencies.
Theta = Annotated[float, Meta(gt=1, le=1e30)]
TokenIds = int | list[int] | None
