"""NaN and infinity in logits: found before a label is read from them."""

from __future__ import annotations

from torch import Tensor, nn

from data.errors import shortened
from data.example import Example
from train.errors import NotFinite
from train.finite import non_finite_parameters

SHOWN = 3  # tensors named in an error message


def finite_rows(logits: Tensor) -> Tensor:
    """[N] bool: rows of logits [N, V] without NaN and infinity. One reduction; does not wait for the device."""
    low, high = logits.aminmax(dim=-1)
    return low.isfinite() & high.isfinite()


def logits_error(model: nn.Module, example: Example) -> NotFinite:
    """The error for an example whose logits are NaN or infinite; names the parameters that cause it."""
    text = shortened(example.text)
    found = f"example {example.id} ({text!r}): the model's logits are NaN or infinite, so it has no answer."
    damaged = non_finite_parameters(model)
    if not damaged:
        precision = str(next(model.parameters()).dtype).removeprefix("torch.")
        return NotFinite(
            f"{found} All weights are finite: the model computes values that {precision} cannot hold. Try --precision "
            "fp32; if that does not help, the checkpoint is damaged."
        )
    more = f" and {len(damaged) - SHOWN} more tensors" if len(damaged) > SHOWN else ""
    return NotFinite(
        f"{found} NaN or infinite values are in the weights: {', '.join(damaged[:SHOWN])}{more}. The checkpoint is "
        "damaged, or its training diverged: get it again, or use an earlier one."
    )
