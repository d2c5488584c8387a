"""Answers that could not be read, by what is wrong with them.

`data.answers` says what is read. In a joint answer each field is read by itself, so each unparsed field has a cause.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from data.answers import literal, unfence
from data.tasks import FieldKind
from eval.page.html import Html, details, foreign, joined, note, omitted, raw, section, table, tag
from eval.results import Prediction, Results

TITLE = "Answers that could not be read"
NOTHING, CUT, BROKEN, SHAPE, UNKNOWN, OTHER = (
    "nothing written", "cut off at the limit", "JSON that does not parse", "JSON of another form",
    "a label that is not in the set", "other text",
)  # fmt: skip
MEANINGS = {
    NOTHING: "the answer is empty or white space",
    CUT: "it reached its maximum of tokens",
    BROKEN: "it begins like a list or an object",
    SHAPE: "not the keys, lists or texts that were asked for",
    UNKNOWN: "one line where a label belongs",
    OTHER: "anything else, such as sentences",
}
LABEL_CHARACTERS = 100  # of what may be meant as a label
EXAMPLES = 3  # of each cause
EXAMPLE_CHARACTERS = 2000  # of an answer that is kept
DIFFERENT = 100_000  # unknown labels that are counted
UNKNOWN_SHOWN = 15


def cause(text: str, stopped: bool, kind: FieldKind, key: str | None) -> tuple[str, str]:
    """Why a field of an answer could not be read.

    Args:
        text: the answer.
        stopped: see `Prediction`.
        kind: the field's.
        key: the field's in a joint answer; None: it is the only field.

    Returns:
        The cause; and the unknown label, else an empty text.
    """
    if not text.strip():
        return NOTHING, ""
    if not stopped:
        return CUT, ""
    bare = unfence(text)
    if key is None and kind == "class":
        is_label = len(bare) <= LABEL_CHARACTERS and "\n" not in bare
        return (UNKNOWN, bare) if is_label else (OTHER, "")
    if bare[:1] not in ("{", "["):
        return OTHER, ""
    value = literal(text)
    if value is None:
        return BROKEN, ""
    if key is not None:
        entry = value.get(key) if isinstance(value, dict) else None
        if kind == "class" and isinstance(entry, str):
            return UNKNOWN, entry[: LABEL_CHARACTERS + 1]
    return SHAPE, ""


@dataclass
class UnreadCounts:
    """What is kept of the answers of which a field is unparsed.

    Attributes:
        fields: the run's, whose keys in a joint answer are task1, task2, ...
        causes: by field and cause.
        unknown: unknown labels by field.
        examples: by cause some answers, each as likely as another, with their ids.
    """

    fields: dict[str, FieldKind]
    n: int = 0
    causes: Counter[tuple[str, str]] = field(default_factory=Counter)
    unknown: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    _seen: Counter[str] = field(default_factory=Counter)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, prediction: Prediction) -> None:
        unparsed = [name for name in self.fields if prediction.parsed.get(name) is None]
        if not unparsed:
            return
        self.n += 1
        keys = {name: f"task{i}" for i, name in enumerate(self.fields, 1)} if len(self.fields) > 1 else {}
        found = dict[str, None]()
        for name in unparsed:
            why, label = cause(prediction.raw, prediction.stopped, self.fields[name], keys.get(name))
            self.causes[name, why] += 1
            found[why] = None
            if label and ((name, label) in self.unknown or len(self.unknown) < DIFFERENT):
                self.unknown[name, label] += 1
        for why in found:
            self._keep(why, prediction)

    def _keep(self, why: str, prediction: Prediction) -> None:
        """Reservoir sampling: the file may be sorted by label."""
        own = self.examples.setdefault(why, [])
        self._seen[why] += 1
        at = len(own) if len(own) < EXAMPLES else self._random.randrange(self._seen[why])
        if at < EXAMPLES:
            own[at : at + 1] = [(prediction.id, prediction.raw[:EXAMPLE_CHARACTERS])]


def unread_section(counts: UnreadCounts, results: Results, writes_text: bool) -> Html:
    """The causes with examples, and the most frequent unknown labels.

    Args:
        writes_text: some answer of the run is not empty.
    """
    n_examples = results.metrics["n_examples"]
    if "combined" in results.settings:
        return omitted(TITLE, "This is two runs that were joined. The pages of the two show their answers.")
    if not counts.n:
        return omitted(
            TITLE, "Every answer was read." if writes_text else "This system gives labels, and writes no text."
        )
    names = list(counts.fields)
    rows = []
    for why, meaning in MEANINGS.items():
        own = [counts.causes[name, why] for name in names]
        if any(own):
            rows.append((joined(why, tag("small", meaning, class_="quiet")), *(f"{n:,}" for n in own)))
    head = ("cause", *(map(foreign, names) if len(names) > 1 else ["answers"]))
    parts = [
        note(f"Of {counts.n:,} of {n_examples:,} answers at least one field could not be read."),
        table(head, rows),
    ]
    for why in MEANINGS:
        if shown := counts.examples.get(why):
            quotes = (tag("p", raw(text, 600), " ", foreign(own, 80, class_="quiet")) for own, text in shown)
            parts.append(details(f"Answers: {why}", *quotes))
    if counts.unknown:
        frequent = [(raw(text, LABEL_CHARACTERS), foreign(name, 80), f"{n:,}")
                    for (name, text), n in counts.unknown.most_common(UNKNOWN_SHOWN)]  # fmt: skip
        parts += [tag("h3", "The most frequent unknown labels"),
                  table(("written", "field", "answers"), frequent, left=(0, 1))]  # fmt: skip
    return section(TITLE, joined(*parts))
