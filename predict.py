"""Label new texts, alone or under torchrun. ``--help`` lists the options; ``eval/predict/config.py`` defines them.

python predict.py --checkpoint runs/NAME/export --input texts.csv --output labelled.csv
echo "wake me at nine am" | python predict.py --checkpoint runs/NAME/export --input -

In Python:

    from predict import Classifier

    classifier = Classifier.load("runs/NAME/export")
    results = classifier(["The parcel has not arrived."])
"""

from __future__ import annotations

import train.allocator  # noqa: F401  # before PyTorch is imported

# isort: split
import sys

from data.terminal import open_streams
from eval.predict.config import DESCRIPTION, PredictConfig, load_config
from train import stopping
from train.options import show_help

if __name__ == "__main__":
    open_streams()
    stopping.watch()
    show_help(PredictConfig, sys.argv[1:], DESCRIPTION)  # before the slow imports below

# isort: split
import logging

from data.errors import UserError
from eval.predict.classifier import Classifier, Entity, Label, LabelSet, Result
from eval.predict.outputs import STANDARD_OUTPUT, OutputClosed
from eval.predict.run import predict
from train.parallel.distributed import run_guarded, set_up_logging

__all__ = ["Classifier", "Entity", "Label", "LabelSet", "Result"]

log = logging.getLogger("eval")


def main() -> None:
    set_up_logging("stderr")  # standard output is for the labels
    try:
        options = load_config(sys.argv[1:])
        summary = predict(options)
    except OutputClosed:
        return
    log.info("%s", summary.describe())
    if options.output != STANDARD_OUTPUT:
        log.info("written to %s", options.output)
    if summary.n_unreadable:
        raise UserError(f"{summary.n_unreadable:,} of the input's records could not be read; their rows say why.")


if __name__ == "__main__":
    run_guarded(main)
