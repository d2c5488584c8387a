"""The model card of an export (``README.md``): what the model does, what it was trained on, figures, how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import cast

from checkpoints_tools.architectures import architecture_of
from data.class_weights import listed_weights
from data.decoder.templates import Prompt, Text
from data.decoder.tokenizer import Tokenizer
from data.tasks import Field, Task, TokenField
from model.encoder import HeadKind
from model.llama_heads import HeadedConfig
from train.config import TrainConfig
from train.setup import Setup

LABELS_SHOWN = 60
OF_DECODER = (
    "a linear layer on the mean of the tokens after four fifths of the layers and on the last token; "
    "the text is read twice"
)
PLACE_OF_TEXT = "{text}"
HEADS: dict[HeadKind, str] = {
    "linear": "a linear layer on the first token",
    "mean": "a linear layer on the mean of all tokens, scaled to the length of the square root of their width",
    "dense": "a dense layer, tanh and a linear layer, on the first token",
}


def model_card(config: TrainConfig, setup: Setup, step: int, figures: Mapping[str, float] | None) -> str:
    """The card as Markdown, with the header that model hubs read.

    Args:
        step: the step after which the model is exported; 0: only new heads were fitted (``--fit_heads``).
        figures: of the last held-out scoring, in [0, 1]; None if nothing was held out, or if the run
            went on from an older checkpoint, which does not have them.
    """
    task, is_decoder = setup.task, setup.spec.kind == "decoder"
    parts = [
        _header(task, is_decoder),
        f"# {task.name}: {setup.spec.name}, {'fully fine-tuned' if step else 'with fitted heads'} to classify text\n",
        "## What it does\n",
        f"Input: {task.document_noun}. Output, "
        + ("written as text:\n" if is_decoder else "with a head for each field:\n"),
        _table(["field", "one for", "labels"], (_field_row(field) for field in task.fields)),
        "`task.json` has the complete definition" + (" (and `prompt.json` the prompt).\n" if is_decoder else ".\n"),
        "## How it was trained\n",
        _table(["", ""], _training_rows(config, setup, step)),
        "`training.json` has all options.\n",
        "## Figures\n",
        _figures(setup, figures),
        "## How to use it\n",
        _usage(task),
    ]
    if setup.prompt is not None:
        parts += [_prompt(prompt_text(setup.prompt, cast(Tokenizer, setup.tokenizer)))]
    return "\n".join(parts)


def _header(task: Task, is_decoder: bool) -> str:
    tags = {"token-classification" if isinstance(field, TokenField) else "text-classification" for field in task.fields}
    kind = "text-generation" if is_decoder else min(tags)
    listed = [f"- {tag}" for tag in sorted(tags)]
    return "\n".join(["---", "library_name: transformers", f"pipeline_tag: {kind}", "tags:", *listed, "---", ""])


def _field_row(field: Field) -> list[str]:
    shown = ", ".join(map(_code, field.labels[:LABELS_SHOWN]))
    more = f", and {len(field.labels) - LABELS_SHOWN} more" if len(field.labels) > LABELS_SHOWN else ""
    unit = {"class": "text", "multi": "text, any number", "token": "word"}[field.kind]
    return [field.name, unit, f"{len(field.labels)}: {shown}{more}"]


def _training_rows(config: TrainConfig, setup: Setup, step: int) -> Iterable[list[str]]:
    batch, epochs = config.batch, step * config.batch.batch_size / setup.loader.units_per_epoch
    held = f", {len(setup.held_out):,} more held out" if setup.held_out else ""
    yield ["data", f"`{setup.task.name}`, {len(setup.samples):,} training examples{held}"]
    if setup.prompt_spec is not None:
        spec, shots = setup.prompt_spec, len(setup.prompt_spec.shots)
        template = f"`{spec.template}` chat template ({spec.template_from})"
        yield ["prompt", f"{template}, {shots} examples in it, {spec.wording} wording"]
    if setup.spec.kind == "encoder":
        yield from _head_rows(cast(HeadedConfig, setup.model_config))
    for name, weights in setup.class_weights.items():
        yield [f"class weights of {name}", listed_weights(weights)]
    if step:
        yield ["length", f"{step:,} steps of {batch.batch_size} {batch.batch_unit}: {epochs:.2f} epochs"]
        yield ["peak learning rate", f"{config.optim.lr:g}, {config.optim.schedule} schedule"]
        yield ["optimizer", f"{config.optim.optim}, all weights trained"]
    else:
        what = "blocks, which are" if setup.spec.architecture.is_decoder_with_heads else "encoder, which is"
        yield ["trained", f"new heads alone, by logistic regression on the checkpoint's {what} unchanged"]
    yield ["seed", str(config.train.seed)]


def _head_rows(config: HeadedConfig) -> Iterable[list[str]]:
    by_text = [head.name for head in config.heads if head.of_documents]
    by_word = [head.name for head in config.heads if not head.of_documents]
    if by_text:
        is_llama = architecture_of(config).is_decoder_with_heads
        what = OF_DECODER if is_llama else f"`{config.head}`: {HEADS[config.head]}"
        yield [f"head of {', '.join(by_text)}", what]
    if by_word:
        yield [f"head of {', '.join(by_word)}", "a linear layer on the first sub-word of each word"]


def _figures(setup: Setup, figures: Mapping[str, float] | None) -> str:
    if not setup.held_out:
        return "No example was held out of the training. `eval.py` gives figures on a test set.\n"
    if figures is None:
        return f"{len(setup.held_out):,} training examples were held out; the run's `log.jsonl` has their figures.\n"
    rows = ([name, f"{value:.1%}"] for name, value in figures.items())
    return f"On {len(setup.held_out):,} training examples that were held out:\n\n" + _table(["", ""], rows)


def _usage(task: Task) -> str:
    text = json.dumps(f"your {task.document_noun}")
    return f"""With the program that trained it:

```bash
python predict.py --checkpoint PATH/TO/THIS/FOLDER --input texts.csv --output labelled.csv
```

```python
from predict import Classifier

classifier = Classifier.load("PATH/TO/THIS/FOLDER")
results = classifier([{text}])
```
"""


def prompt_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """The prompt as one text with special tokens, and with `PLACE_OF_TEXT` in the document's place."""
    by_id: dict[int | None, str] = {i: token for token, i in tokenizer.special.items()}
    roles = {"bos": by_id.get(tokenizer.bos_id, ""), "eos": by_id.get(tokenizer.eos_id, "")}
    pieces = (*prompt.prefix, Text(PLACE_OF_TEXT), *prompt.suffix)
    return "".join(p.text if isinstance(p, Text) else roles.get(p.name, p.name) for p in pieces)


def _code(text: str) -> str:
    """A text in Markdown's `code`, whatever backticks it has."""
    fence = _fence(text, 1)
    return f"{fence} {text} {fence}" if "`" in text else fence + text + fence


def _fence(text: str, least: int) -> str:
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _prompt(text: str) -> str:
    fence = _fence(text, 3)
    return f"""Other programs (`transformers`, vLLM) need the exact prompt, with the special tokens as they are here and
the text in the place of `{PLACE_OF_TEXT}`. Add no special tokens when tokenizing it (`add_special_tokens=False`), and
decode greedily. `classifier.prompt_ids(text)` gives the exact token ids.

{fence}
{text}
{fence}
"""


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
