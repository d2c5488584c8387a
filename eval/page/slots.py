"""A token field: what kinds of errors its entities have, and the figures of each type.

Entities are those of the main score (`eval.metrics`): equal neighbours are one. Each gold entity and each answered one
has one outcome:

    right            same words, same type
    wrong type       same words, another type
    wrong boundary   they overlap, same type
    wrong both       they overlap, another type
    missed           a gold entity, no answered one is left that overlaps it
    spurious         an answered entity, no gold one is left that overlaps it
    unread           a gold entity in an answer that could not be read

An entity is in one pair at most. Pairs of the same words come first, then those of the same type, then the others;
among these the one with the longer overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from data.answers import entities
from data.tasks import TokenField
from eval.metrics import fit, ratio
from eval.page.html import Html, details, foreign, further, joined, label, meter, note, raw, table, tag
from eval.page.texts import Texts
from eval.results import Prediction

TYPES_SHOWN = 300
OPEN_TYPES = 25  # shown without a click
MIXED_SHOWN = 10  # pairs of types
WORDS_AROUND = 12  # an error in an example
MEANINGS = {
    "wrong type": "same words, another type",
    "wrong boundary": "overlapping words, same type",
    "wrong both": "overlapping words, another type",
    "missed": "no answered entity is left that overlaps it",
    "spurious": "no gold entity is left that it overlaps",
    "unread": "in answers that could not be read",
}

Entity = tuple[str, int, int]  # type, first word, end
Pair = tuple[Entity | None, Entity | None]  # gold, answered


def outcomes(gold: Sequence[Entity], predicted: Sequence[Entity]) -> list[tuple[str, Pair]]:
    """The outcome of every entity of one text that was read, as above."""
    right = set(gold) & set(predicted)
    found: list[tuple[str, Pair]] = [("right", (own, own)) for own in gold if own in right]
    left, unused = ([own for own in side if own not in right] for side in (gold, predicted))

    def take(kind: str, same_type: bool, same_words: bool) -> None:
        """Pair what is left, gold entities in their order."""
        for own in list(left):
            matching = [
                other for other in unused
                if (other[0] == own[0]) is same_type
                and (other[1:] == own[1:] if same_words else _overlap(own, other) > 0)
            ]  # fmt: skip
            if matching:
                best = max(matching, key=lambda other: _overlap(own, other))
                left.remove(own)
                unused.remove(best)
                found.append((kind, (own, best)))

    take("wrong type", same_type=False, same_words=True)
    take("wrong boundary", same_type=True, same_words=False)
    take("wrong both", same_type=False, same_words=False)
    return [*found, *(("missed", (own, None)) for own in left), *(("spurious", (None, own)) for own in unused)]


def _overlap(a: Entity, b: Entity) -> int:
    return min(a[2], b[2]) - max(a[1], b[1])


@dataclass
class TokenCounts:
    """What is kept of the answers to one token field.

    Attributes:
        other: the type of words outside entities.
        kinds: entities by outcome.
        first: of each kind of error the first one: its example's id, number of words, and entities.
        n_gold, n_predicted, n_right: entities by type.
        mixed: types of entities whose words are right, gold and answered.
        alone: the run has no other token field, so the sums of a prediction are this field's.
        n_short, n_long: answers with too few and too many labels, and the first answer of each kind, with its id.
        n_unknown: answers of another length in older files, which have only the sums over several token fields.
    """

    name: str
    other: str = TokenField.other
    alone: bool = True
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[str, int, Pair]] = field(default_factory=dict)
    n_gold: Counter[str] = field(default_factory=Counter)
    n_predicted: Counter[str] = field(default_factory=Counter)
    n_right: Counter[str] = field(default_factory=Counter)
    mixed: Counter[tuple[str, str]] = field(default_factory=Counter)
    n_short: int = 0
    n_long: int = 0
    n_unknown: int = 0
    wrong_length: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, prediction: Prediction) -> None:
        gold, answer = prediction.gold[self.name], prediction.parsed[self.name]
        assert not isinstance(gold, str) and not isinstance(answer, str), self.name
        wanted = entities(gold, self.other)
        given = [] if answer is None else entities(fit(answer, len(gold), self.other), self.other)
        self.n_gold.update(kind for kind, _, _ in wanted)
        self.n_predicted.update(kind for kind, _, _ in given)
        found = outcomes(wanted, given) if answer is not None else [("unread", (own, None)) for own in wanted]
        for kind, pair in found:
            self.kinds[kind] += 1
            if kind == "right":
                self.n_right[_type(pair[0])] += 1
            elif kind not in self.first:
                self.first[kind] = prediction.id, len(gold), pair
            if kind == "wrong type":
                self.mixed[_type(pair[0]), _type(pair[1])] += 1
        self._add_length(prediction, len(gold))

    def _add_length(self, prediction: Prediction, n_words: int) -> None:
        n_missing, n_extra = prediction.n_missing, prediction.n_extra
        if not self.alone:
            if n_missing + n_extra and not prediction.n_labels:
                self.n_unknown += 1
                return
            surplus = prediction.n_labels.get(self.name, n_words) - n_words
            n_missing, n_extra = max(0, -surplus), max(0, surplus)
        self.n_short += n_missing > 0
        self.n_long += n_extra > 0
        for what, n in (("short", n_missing), ("long", n_extra)):
            if n and prediction.raw:
                self.wrong_length.setdefault(what, (prediction.id, prediction.raw[:2000]))

    @property
    def f1(self) -> float:
        """That of `eval.metrics.token_metrics`."""
        return ratio(2 * self.n_right.total(), self.n_gold.total() + self.n_predicted.total())


def _type(entity: Entity | None) -> str:
    assert entity is not None
    return entity[0]


def token_parts(counts: TokenCounts, texts: Texts) -> Html:
    """The kinds of errors with an example of each, and the figures of each type."""
    n_gold, n_predicted = counts.n_gold.total(), counts.n_predicted.total()
    if not n_gold + n_predicted:
        return note("There are no entities, neither in the gold labels nor in the answers.")
    rows = []
    for kind, meaning in MEANINGS.items():
        of = n_predicted if kind == "spurious" else n_gold
        share = f"{ratio(counts.kinds[kind], of):.1%}"
        if kind != "unread" or counts.kinds[kind]:
            rows.append((joined(kind, tag("small", meaning, class_="quiet")), f"{counts.kinds[kind]:,}", share))
    parts = [
        tag("h3", "Errors by kind"),
        note(f"{n_gold:,} gold entities, {n_predicted:,} answered; {counts.kinds['right']:,} are right. Equal "
             "neighbours are one entity."),
        table(("kind", "entities", "share"), rows),
        note("Shares are of the gold entities; that of the spurious ones is of the answered entities."),
        *(_example(kind, counts, texts) for kind in MEANINGS if kind in counts.first),
        _lengths(counts),
        tag("h3", "Figures of each type"),
        types_table(counts),
    ]  # fmt: skip
    if counts.mixed:
        pairs = [(label(g), label(p), f"{n:,}") for (g, p), n in counts.mixed.most_common(MIXED_SHOWN)]
        parts += [tag("h3", "Types taken for others"), table(("gold", "answered", "entities"), pairs, left=(0, 1))]
    return joined(*parts)


def types_table(counts: TokenCounts) -> Html:
    """Precision, recall and F1 of each type, the lowest F1 first."""
    rows = []
    for kind in counts.n_gold.keys() | counts.n_predicted.keys():
        right, wanted, given = counts.n_right[kind], counts.n_gold[kind], counts.n_predicted[kind]
        rows.append((ratio(2 * right, wanted + given), -wanted, kind, ratio(right, given), ratio(right, wanted), given))
    cells = [
        (label(kind), meter(f1), f"{precision:.1%}", f"{recall:.1%}", f"{-wanted:,}", f"{given:,}")
        for f1, wanted, kind, precision, recall, given in sorted(rows)[:TYPES_SHOWN]
    ]
    head = ("type", "F1", "precision", "recall", "gold", "answered")
    shown = [table(head, cells[:OPEN_TYPES])]
    if rest := cells[OPEN_TYPES:]:
        shown.append(details(further(len(rest), "type"), table(head, rest)))
    if len(rows) > TYPES_SHOWN:
        shown.append(note(f"Not shown: {further(len(rows) - TYPES_SHOWN, 'type')}."))
    return joined(*shown)


def _example(kind: str, counts: TokenCounts, texts: Texts) -> Html:
    """The first error of a kind."""
    prediction_id, n_words, (gold, predicted) = counts.first[kind]
    example = texts.of(prediction_id)
    words = example.words if example is not None else None
    if words is None or len(words) != n_words:
        sides = [f"{what}: {own[0]} at {_places(own)}" if own else f"{what}: nothing" for what, own in
                 (("gold", gold), ("answered", predicted))]  # fmt: skip
        line = tag("p", foreign("; ".join(sides), 400))
    else:
        rows = [tag("div", tag("span", what), _marked(words, own, gold or predicted, wrong), class_="sides")
                for what, own, wrong in (("gold", gold, ""), ("answered", predicted, "wrong"))]  # fmt: skip
        line = tag("blockquote", *rows)
    return tag("div", tag("b", kind), " ", foreign(prediction_id, 80, class_="quiet"), line)


def _places(entity: Entity) -> str:
    _, first, end = entity
    return f"word {end}" if end == first + 1 else f"words {first + 1} to {end}"


def _marked(words: Sequence[str], entity: Entity | None, around: Entity | None, class_: str) -> Html:
    """The words around an error, with the entity marked."""
    assert around is not None
    kind, start, end = entity or ("", around[1], around[1])
    first, last = max(0, min(start, around[1]) - WORDS_AROUND), max(end, around[2]) + WORDS_AROUND
    middle = words[start : min(end, start + 3 * WORDS_AROUND)]
    parts: list[str] = ["… " if first else "", foreign(" ".join(words[first:start]), 400), " "]
    if entity is not None:
        attributes = {"class_": class_} if class_ else {}
        parts.append(tag("mark", foreign(" ".join(middle), 400), tag("small", label(kind)), **attributes))
    parts += [" ", foreign(" ".join(words[end:last]), 400), " …" if last < len(words) else ""]
    return tag("bdi", *parts, dir="auto")


def _lengths(counts: TokenCounts) -> Html:
    title = tag("h3", "Answers of another length than the text")
    if counts.n_unknown:
        return joined(title, note(f"{counts.n_unknown:,} answers have too few or too many labels of a token field. The "
                                  "run does not say of which. Score again."))  # fmt: skip
    if not counts.n_short + counts.n_long:
        return Html()
    parts: list[str] = [
        title,
        note(f"{counts.n_short:,} answers have too few labels, {counts.n_long:,} too many. Words without a label are "
             "outside all entities."),
    ]  # fmt: skip
    for what, (prediction_id, text) in counts.wrong_length.items():
        parts.append(tag("p", f"too {what}: ", raw(text, 600), " ", foreign(prediction_id, 80, class_="quiet")))
    return joined(*parts)
