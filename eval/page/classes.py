"""A class field: which labels are taken for which, and the figures of each label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eval.metrics import ratio
from eval.page.html import Html, details, further, joined, label, meter, note, short_label, table, tag
from eval.page.style import LEVELS
from eval.page.texts import Texts

MATRIX_LABELS = 80  # of a matrix with more, those with the most errors
COUNTED_LABELS = 25  # with more, the cells are too small for numbers
TABLE_LABELS = 300
PAIRS_SHOWN = 15
TEXTS_OF_A_PAIR = 2
PAIRS_WITH_TEXTS = 20_000  # kept while reading; a frequent pair is among them

Pairs = Mapping[tuple[str, str | None], int]  # (gold, predicted) → answers; None: unparsed


@dataclass
class ClassCounts:
    """What is kept of the answers to one class field.

    Attributes:
        pairs: how often each gold label has been answered with each label.
        ids: of wrong pairs, the first examples.
    """

    name: str
    pairs: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    ids: dict[tuple[str, str | None], list[str]] = field(default_factory=dict)

    def add(self, example_id: str, gold: str, predicted: str | None) -> None:
        pair = gold, predicted
        self.pairs[pair] += 1
        if gold != predicted and predicted is not None:
            if pair not in self.ids and len(self.ids) < PAIRS_WITH_TEXTS:
                self.ids[pair] = []
            known = self.ids.get(pair)
            if known is not None and len(known) < TEXTS_OF_A_PAIR:
                known.append(example_id)

    @property
    def n_right(self) -> int:
        return sum(n for (gold, predicted), n in self.pairs.items() if gold == predicted)


@dataclass(frozen=True)
class LabelScores:
    """The figures of one label."""

    label: str
    precision: float
    recall: float
    f1: float
    n_gold: int
    n_predicted: int


def occurring(pairs: Pairs, known: Sequence[str] = ()) -> list[str]:
    """The labels in gold or predictions, in the order of ``known``, the others after them by name."""
    found = {label for pair in pairs for label in pair if label is not None}
    return [label for label in known if label in found] + sorted(found - set(known))


def label_scores(pairs: Pairs, labels: Sequence[str]) -> list[LabelScores]:
    """Precision, recall and F1 of each label; undefined ones are 0. An unparsed answer is a miss of its gold label."""
    from sklearn.metrics import precision_recall_fscore_support

    if not labels:
        return []
    numbers = {label: i for i, label in enumerate(labels)}
    gold = [numbers[g] for g, _ in pairs]
    predicted = [len(labels) if p is None else numbers[p] for _, p in pairs]
    precision, recall, f1, n_gold = precision_recall_fscore_support(
        gold, predicted, labels=list(range(len(labels))), sample_weight=list(pairs.values()), zero_division=0
    )
    n_predicted = Counter[str]()
    for (_, p), n in pairs.items():
        if p is not None:
            n_predicted[p] += n
    return [
        LabelScores(own, float(precision[i]), float(recall[i]), float(f1[i]), round(n_gold[i]), n_predicted[own])
        for i, own in enumerate(labels)
    ]


def class_parts(counts: ClassCounts, texts: Texts, known: Sequence[str] = ()) -> Html:
    """The matrix, the table of the labels and the most confused pairs of a field.

    Args:
        known: the field's labels, in the order in which they are shown.
    """
    labels = occurring(counts.pairs, known)
    return joined(
        tag("h3", "Confusion matrix"),
        matrix(counts.pairs, labels),
        tag("h3", "Figures of each label"),
        scores_table(label_scores(counts.pairs, labels)),
        tag("h3", "Labels taken for others"),
        confused(counts, texts),
    )


def matrix(pairs: Pairs, labels: Sequence[str]) -> Html:
    """A confusion matrix: a row for each gold label, a column for each predicted one, and one for unparsed answers.

    The colour of a cell is its share of its row: right answers in one colour, wrong ones in another one whose shades
    are those of the share's square root, so that rare errors are visible.
    """
    wrong = Counter[str]()
    for (gold, predicted), n in pairs.items():
        if gold != predicted:
            wrong[gold] += n
            if predicted is not None:
                wrong[predicted] += n
    worst = {name for name, _ in wrong.most_common(MATRIX_LABELS)}
    kept = [own for own in labels if own in worst] if len(labels) > MATRIX_LABELS else list(labels)
    if len(kept) == len(labels) - 1:  # one alone has room of its own
        kept = list(labels)
    n_pooled = len(labels) - len(kept)
    numbers = {own: i for i, own in enumerate(kept)}
    others, unparsed = len(kept), len(kept) + 1  # columns; the others are one row and one column
    cells, totals = Counter[tuple[int, int]](), Counter[int]()
    for (gold, predicted), n in pairs.items():
        row = numbers.get(gold, others)
        cells[row, unparsed if predicted is None else numbers.get(predicted, others)] += n
        totals[row] += n
    has_unparsed = any(predicted is None for _, predicted in pairs)
    columns = [*range(others), *([others] if n_pooled else []), *([unparsed] if has_unparsed else [])]
    names = [*map(short_label, kept), tag("span", f"{n_pooled:,} others", class_="quiet"),
             tag("span", "unparsed", class_="quiet")]  # fmt: skip
    counted = len(kept) <= COUNTED_LABELS
    top = [tag("th", tag("span", names[i])) for i in columns]
    head = tag("tr", tag("th", "gold"), *top, tag("th", "", class_="total"))
    rows = []
    for row in columns:
        if row == unparsed:
            continue
        own = [_cell(cells[row, column], totals[row], row == column, row == others, counted) for column in columns]
        rows.append(tag("tr", tag("th", names[row]), *own, tag("td", f"{totals[row]:,}", class_="total")))
    shown = tag("table", tag("thead", head), tag("tbody", *rows), class_="matrix" if counted else "matrix small")
    return joined(
        note(
            "Rows are gold labels, columns are answers. The colour is the share of the row.",
            "" if counted else " Point at a cell to see the number.",
            f" The {n_pooled:,} labels with the fewest errors share a row and a column." if n_pooled else "",
        ),
        _shades(),
        tag("div", shown, class_="scroll"),
    )  # fmt: skip


def _shades() -> Html:
    """What the colours of a matrix mean."""
    levels = (2, 4, 6, 8, 10)
    right = [tag("span", f"{level / LEVELS:.0%}", class_=f"r{level}") for level in levels]
    wrong = [tag("span", f"{(level / LEVELS) ** 2:.0%}", class_=f"e{level}") for level in levels]
    return tag("p", "right ", *right, Html(" &ensp; "), "wrong ", *wrong, class_="shades")


def _cell(n: int, total: int, is_right: bool, is_pooled: bool, counted: bool) -> Html:
    if not n:
        return Html("<td></td>")
    share = n / total
    if is_right and is_pooled:  # right answers, and labels taken for another one of the pooled ones
        return tag("td", f"{n:,}" if counted else "", title=f"{n:,}: {share:.1%}")
    level = math.ceil(LEVELS * (share if is_right else math.sqrt(share)))
    shade = f"{'r' if is_right else 'e'}{min(level, LEVELS)}"
    return tag("td", f"{n}" if counted and n < 10_000 else "", class_=shade, title=f"{n:,}: {share:.1%}")


def scores_table(scores: Sequence[LabelScores]) -> Html:
    """The figures of each label, the lowest F1 first; of many the lowest alone."""
    ordered = sorted(scores, key=lambda own: (own.f1, -own.n_gold, own.label))
    rows = [
        (label(own.label), meter(own.f1), f"{own.precision:.1%}", f"{own.recall:.1%}", f"{own.n_gold:,}",
         f"{own.n_predicted:,}")
        for own in ordered[:TABLE_LABELS]
    ]  # fmt: skip
    head = ("label", "F1", "precision", "recall", "gold", "answered")
    more = len(ordered) - TABLE_LABELS
    first, rest = rows[:COUNTED_LABELS], rows[COUNTED_LABELS:]
    parts = [table(head, first)]
    if rest:
        parts.append(details(further(len(rest), "label"), table(head, rest)))
    if more > 0:
        parts.append(note(f"Not shown: {further(more, 'label')}."))
    return joined(*parts)


def confused(counts: ClassCounts, texts: Texts) -> Html:
    """The most frequent wrong pairs, with texts."""
    wrong = {pair: n for pair, n in counts.pairs.items() if pair[1] is not None and pair[0] != pair[1]}
    if not wrong:
        return note("No label was taken for another one.")
    of_gold = Counter[str]()
    for (gold, _), n in counts.pairs.items():
        of_gold[gold] += n
    ordered = sorted(wrong, key=lambda pair: (-wrong[pair], pair[0], pair[1] or ""))
    items = []
    for pair in ordered[:PAIRS_SHOWN]:
        gold, predicted, n = pair[0], pair[1] or "", wrong[pair]
        line = tag(
            "div", label(gold), " → ", label(predicted),
            tag("span", f"  {n:,} of {of_gold[gold]:,} ({ratio(n, of_gold[gold]):.1%})", class_="quiet"),
        )  # fmt: skip
        quotes = [texts.quote(own) for own in counts.ids.get(pair, [])] if texts.by_id else []
        items.append(tag("li", line, *quotes))
    n_pairs, n_wrong = len(wrong), sum(wrong.values())
    return joined(
        note(f"{n_wrong:,} answers have another label than the gold one: {n_pairs:,} pairs, gold → answered."),
        tag("ol", *items, class_="pairs"),
    )  # fmt: skip
