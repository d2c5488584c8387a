"""The labels of a token column: bare types, or tags of IOB1, IOB2, IOBES or BILOU.

    words    fly to  new     york    and  rome    milan
    types    O   O   city    city    O    city    city
    iob1     O   O   I-city  I-city  O    I-city  B-city    B- only after another entity of the type
    iob2     O   O   B-city  I-city  O    B-city  B-city
    iobes    O   O   B-city  E-city  O    S-city  S-city
    bilou    O   O   B-city  L-city  O    U-city  U-city

A letter means the same in all schemes: B, S and U begin an entity, I, E and L continue one of the same type or else
begin one, and S, U, E and L end it. So tags of known types can be read without knowing the scheme. What must be decided
is whether ``B-cell`` is a tag of ``cell`` or a type by itself. Where the data do not say, the user has to.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from data.characters import by_appearance, find
from data.errors import UserError
from data.readers.row_errors import unknown

SCHEMES = {"types": "", "iob1": "BI", "iob2": "BI", "iobes": "BIES", "bilou": "BILU"}
OUTSIDE = "O"
TAG = re.compile(r"([BIESLU])-(.*)", re.DOTALL)
NAME_THEM = 'Say how the labels are written: tags = "types", "iob1", "iob2", "iobes" or "bilou".'


class TagReader:
    """Reads the labels of a token field whose types are known.

    Args:
        types: the field's label set.
        other: the type of words outside entities.
        scheme: a key of `SCHEMES`; None: each label says by itself whether it is a type or a tag of one.
    """

    def __init__(self, types: Sequence[str], other: str, scheme: str | None) -> None:
        self.known, self.other, self.scheme = by_appearance((*types, other)), other, scheme
        self.letters = "BIESLU" if scheme is None else SCHEMES[scheme]
        self.found: dict[str, tuple[str, str]] = {}  # by label, its type and its letter, "" for a bare type

    def read(self, labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Types, and IOB2 tags. A bare type continues an entity of the same type.

        Raises:
            UserError: a label that is no type and no tag of one, or that may be either; without its place.
        """
        types: list[str] = []
        iob2: list[str] = []
        continued = None  # the type of the entity that the next word may continue
        for label in labels:
            if label not in self.found:
                self.found[label] = self._meaning(label)
            kind, letter = self.found[label]
            types.append(kind)
            if kind == self.other:
                iob2.append("O")
                continued = None
                continue
            inside = kind == continued and letter in ("", "I", "E", "L")
            iob2.append(f"{'I' if inside else 'B'}-{kind}")
            continued = None if letter in ("S", "U", "E", "L") else kind
        return tuple(types), tuple(iob2)

    def mixed(self) -> str:
        """A warning if both bare types and tags were found; else empty."""
        bare = [label for label, (kind, letter) in self.found.items() if not letter and kind != self.other]
        tags = [label for label, (_, letter) in self.found.items() if letter]
        if not bare or not tags:
            return ""
        kind, _ = self.found[tags[0]]
        return f"both bare types ({bare[0]!r}) and tags ({tags[0]!r}, read as {kind!r})."

    def _meaning(self, label: str) -> tuple[str, str]:
        bare = find(label, self.known)
        match = TAG.fullmatch(label)
        marked = match is not None and match[1] in self.letters
        kind = find(match[2], self.known) if match is not None and marked else None
        if bare is None and label == OUTSIDE:
            bare = self.other
        if self.scheme not in (None, "types"):
            if bare != self.other and not marked:
                raise UserError(_no_tag(f"is {label!r}", label, self.scheme))
            bare = bare if bare == self.other else None
        if bare is not None and kind is not None:
            raise UserError(f"is {label!r}, which is a label, and a tag of the label {kind!r}. {NAME_THEM}")
        if kind is not None and match is not None:
            return kind, match[1]
        if bare is not None:
            return bare, ""
        name = match[2] if match is not None and marked else label
        raise unknown(f"is {name!r}, which is not one of its labels.", name, self.known.values())


def _no_tag(found: str, label: str, scheme: str) -> str:
    advice = _name_type([label]) if label in SCHEMES[scheme] else ""
    letters = ", ".join(SCHEMES[scheme])
    return f'{found}, which is not a tag of tags = "{scheme}": {letters} before a type, as in B-city.{advice}'


def _name_type(letters: Iterable[str]) -> str:
    """What to write if the tags of a table are letters alone."""
    names = ", ".join(f'{letter} = "{letter}-part"' for letter in sorted({"B", "I", *letters}))
    return f' Give them a type in place of labels_from: names = {{ O = "O", {names} }}.'


def types_among(labels: Iterable[str], other: str, scheme: str | None) -> tuple[set[str], str]:
    """The types in all labels of a column, and what is to be said about how they were read.

    Raises:
        UserError: labels that are not of the scheme; without a scheme, labels that may be types or tags.
    """
    labels = set(labels)
    inside = labels - {other, OUTSIDE}
    tags = {label: (match[1], match[2]) for label in inside if (match := TAG.fullmatch(label)) and match[2]}
    if scheme == "types" or (scheme is None and not tags):
        if scheme is None and {"B", "I"} <= inside <= set("BIESLU"):
            raise UserError(
                f"has {', '.join(sorted(inside))}, the letters of tags without types.{_name_type(inside)} {NAME_THEM}"
            )
        return inside, ""
    if scheme is not None:
        wrong = [label for label in inside if label not in tags or tags[label][0] not in SCHEMES[scheme]]
        if wrong:
            raise UserError(_no_tag(f"has {min(wrong)!r}", min(wrong), scheme))
        return {kind for _, kind in tags.values()}, ""

    letters: dict[str, set[str]] = defaultdict(set)
    for letter, kind in tags.values():
        letters[kind].add(letter)
    example = min(tags)
    either = f"has {example!r}, which may be a tag of {tags[example][1]!r} or a type by itself"
    if bare := inside - tags.keys():
        raise UserError(f"{either}: there are types without such a beginning ({min(bare)!r}). {NAME_THEM}")
    used = set().union(*letters.values())
    found = next((name for name in ("iob2", "iobes", "bilou") if used <= set(SCHEMES[name])), None)
    if found is None:
        raise UserError(f"{either}: {', '.join(sorted(used))} are not the letters of one scheme. {NAME_THEM}")
    if found != "iob2":  # an entity of several words begins with B and ends with E or L
        for kind, own in sorted(letters.items()):
            begins, ends = "B" in own, bool(own & {"E", "L"})
            if begins != ends or ("I" in own and not begins):
                raise UserError(f"{either}: of {kind!r} there is only {', '.join(sorted(own))}. {NAME_THEM}")
    if all(len(own) == 1 for own in letters.values()):
        if OUTSIDE not in labels or other == OUTSIDE:
            raise UserError(f"{either}: no type has tags with two letters. {NAME_THEM}")
        return set(
            letters
        ), f'{example!r} is read as a tag of {tags[example][1]!r}. If it is a type, set tags = "types".'
    return set(letters), ""
