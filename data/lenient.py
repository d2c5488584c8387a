"""A lenient reading of answers, for a second figure beside the strict one.

`Task.read` demands exactly a label. Models that were not fine-tuned often write the right label with something around
it. This reading removes what these rules name, and nothing else:

1. An answer that is read strictly, without a loss, keeps its labels: nothing below applies to it.
2. Layers around a label: white space and a code fence; a pair of quotation marks, backticks or asterisks; a lead-in,
   such as "Label:", "The topic is" or "It is", also with the field's own name; a final full stop.
3. Case does not matter, unless two labels of the set differ only by case.
4. A JSON object or list inside other text: what is between the first opening bracket and the last closing one, if that
   is valid. In a list, rules 2 and 3 hold for each entry. In spans, rule 3 holds for types and words.
5. Where any number of labels is asked for, a label alone, found by rules 2 and 3, is a list of it.

The label that is found after removing the fewest layers counts, so "a." is not read as "a" if both are labels. What is
left must be an entire label: "date_time" is never read as "date", nor "not spam" as "spam". Where a label has a lead-in
itself, as "answer: no" beside "no", nothing is removed around the shorter one. So no label can become another one; the
tests show it for every label of every task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from data.answers import Counts, LabelList, Labels, Parsed, Spans, TypeList, literal, unfence
from data.tasks import ClassField, MultiField, Task

MAX_LAYERS = 10

_QUOTES = ("''", '""', "``", "**", "‘’", "“”", "’’")
_NOUNS = ("label", "class", "category", "classification", "topic", "intent", "group", "newsgroup", "slots", "tag",
          "answer", "output", "result")  # fmt: skip
_DOCUMENT = "(?:news |utter |utterance |given )?(?:text|utterance|utter|document|post|message)"


def read_leniently(task: Task, text: str, words: Sequence[str], strict: Parsed | None = None) -> Parsed:
    """The labels in an answer by the rules above; never raises.

    Args:
        text, words: those of `Task.read`.
        strict: the result of `Task.read`, if it is known.
    """
    strict = task.read(text, words) if strict is None else strict
    if not (strict.unparsed or strict.n_unknown or strict.n_not_found):
        return strict
    values: Sequence[object]
    if task.is_joint:
        value = _inside(text, "{", "}")
        answer = value if isinstance(value, dict) else {}
        values = [answer.get(key) for key in task.keys]
    else:
        listed = None if isinstance(task.fields[0], ClassField) else _inside(text, "[", "]")
        values = [text if listed is None else listed]
    counts, labels = Counts(), dict[str, Labels | None]()
    for key, field, value in zip(task.keys, task.fields, values, strict=True):
        if isinstance(field, ClassField):
            found = strict.labels[field.name]
            if found is None and isinstance(value, str):
                found = _find(value, field.labels, (field.name, key))
            labels[field.name] = found
        elif isinstance(field, MultiField):
            entries = [value] if isinstance(value, str) else value
            own, _ = _LenientLabels(field.labels, (field.name, key)).read(entries, words, counts)
            labels[field.name] = own if own or isinstance(value, list) else None
        elif isinstance(field.format, Spans):
            labels[field.name] = _LenientSpans(field.labels, field.other).read(value, words, counts)[0]
        else:
            reader = _LenientList(field.labels, field.other, field.format)
            labels[field.name], _ = reader.read(value, words, counts)
    return Parsed(labels, tuple(name for name, found in labels.items() if found is None), **vars(counts))


def _inside(text: str, opening: str, closing: str) -> object:
    """The JSON object or list that is the text, or that is inside it."""
    whole = literal(text)
    if isinstance(whole, dict if opening == "{" else list):
        return whole
    start, end = text.find(opening), text.rfind(closing)
    return literal(text[start : end + 1]) if 0 <= start < end else None


def _find(text: str, labels: tuple[str, ...], names: tuple[str, ...] = ()) -> str | None:
    """The label that is left after removing the fewest layers; None if that is none, or more than one."""
    known, inner, bare = _known(labels), {text}, set[str]()  # bare: without a lead-in that they had
    for _ in range(MAX_LAYERS + 1):
        found = {label for label in map(known, inner) if label is not None}
        found |= {label for label in map(known, bare) if label is not None} - _ends_of_labels(labels, names)
        if found or not (inner or bare):
            return found.pop() if len(found) == 1 else None
        bare = {peeled for outer in bare for peeled in _peel(outer, _lead_in(names))}
        bare |= {outer[match.end() :] for outer in inner if (match := _lead_in(names).match(outer))}
        inner = {peeled for outer in inner for peeled in _peel(outer)}
    return None


@cache
def _ends_of_labels(labels: tuple[str, ...], names: tuple[str, ...]) -> frozenset[str]:
    """Labels that are left of another label without its lead-in: "no" of "answer: no"."""
    known = _known(labels)
    left = {known(text[match.end() :].strip()) for text in labels if (match := _lead_in(names).match(text))}
    return frozenset(label for label in left if label is not None)


def _peel(text: str, lead_in: re.Pattern[str] | None = None) -> list[str]:
    """The text without one of its outermost layers, for each of them; lead-ins only if given."""
    peeled = [bare] if (bare := unfence(text)) != text else []
    if text[:1] + text[-1:] in _QUOTES and len(text) > 2:
        peeled.append(text[1:-1])
    if lead_in is not None and (match := lead_in.match(text)):
        peeled.append(text[match.end() :])
    if text.endswith("."):
        peeled.append(text[:-1])
    return peeled


@cache
def _lead_in(names: tuple[str, ...]) -> re.Pattern[str]:
    nouns = "|".join(re.escape(noun) for noun in (*_NOUNS, *names))
    subject = (
        r"(?:(?:the|my|its) )?(?:(?:correct|best|right|final|predicted|appropriate|most likely) )?"
        rf"(?:{nouns})(?: (?:of|for) (?:the|this) {_DOCUMENT})?"
    )
    return re.compile(rf"{subject} ?:|(?:{subject}|it|this) is(?: ?:|(?= ))", re.IGNORECASE)


@cache
def _known(labels: tuple[str, ...]) -> Callable[[str], str | None]:
    """A function that finds a label by its spelling, or by its spelling without case where that is unique."""
    exact, folds = set(labels), Counter(label.casefold() for label in labels)
    by_fold = {label.casefold(): label for label in labels if folds[label.casefold()] == 1}
    return lambda text: text if text in exact else by_fold.get(text.casefold())


@dataclass(frozen=True)
class _LenientLabels(LabelList):
    """Reads entries by rules 2 and 3; ``names`` are those of the field."""

    names: tuple[str, ...]

    def label_of(self, entry: object) -> str | None:
        return _find(entry, self.labels, self.names) if isinstance(entry, str) else None


@dataclass(frozen=True)
class _LenientList(TypeList):
    """Reads the entries of ``strict`` by rules 2 and 3."""

    strict: TypeList

    def type_of(self, entry: object) -> str | None:
        if not isinstance(entry, str):
            return None
        return self.strict.type_of(_find(entry, (*self.strict.listed, self.strict.outside)))


@dataclass(frozen=True)
class _LenientSpans(Spans):
    """Reads spans without regard to case; what is there in the same case comes first."""

    def type_of(self, entry: object) -> str | None:
        exact = super().type_of(entry)
        if exact is not None or not isinstance(entry, str):
            return exact
        known = _known(self.labels)
        found = [kind for kind in self.labels if entry[len(kind) :][:1] == ":" and known(entry[: len(kind)]) == kind]
        return max(found, key=len, default=None)

    def places(self, phrase: Sequence[str], words: Sequence[str]) -> list[int]:
        folded = [word.casefold() for word in phrase], [word.casefold() for word in words]
        return super().places(phrase, words) or super().places(*folded)
