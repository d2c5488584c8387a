"""Read MASSIVE en-US (JSON lines) into examples.

Each line holds an utterance twice: plain (``utt``) and with its slots in brackets (``annot_utt``)::

    utt        wake me up at nine am on friday
    annot_utt  wake me up at [time : nine am] on [date : friday]
    labels     Other Other Other Other time time Other date
    bio        O     O     O     O     B-time I-time O B-date

The words are those of ``utt.split()``, because the plain utterance is what a system gets as input. In some lines the
annotation has other words (68 of 12,275 in the SLURP-derived file: capitals, ``sacremento``, ``@comcast`` for "at
comcast"). No line is dropped. The words of such a line are aligned, and
the lines are counted by kind (`data.readers.align`).
"""

from __future__ import annotations

import gzip
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from data.errors import UserError, nearest
from data.example import Example
from data.files import limits
from data.files.archive import is_tarball, iterate_tarball
from data.files.documents import parse_line, read_bytes, readable
from data.readers.align import AnnotatedWord, align
from data.readers.encoding import START, not_text, not_utf8
from data.readers.lines import is_packed, unpacking

INTENTS: tuple[str, ...] = (
    "alarm_query",
    "alarm_remove",
    "alarm_set",
    "audio_volume_down",
    "audio_volume_mute",
    "audio_volume_other",
    "audio_volume_up",
    "calendar_query",
    "calendar_remove",
    "calendar_set",
    "cooking_query",
    "cooking_recipe",
    "datetime_convert",
    "datetime_query",
    "email_addcontact",
    "email_query",
    "email_querycontact",
    "email_sendemail",
    "general_greet",
    "general_joke",
    "general_quirky",
    "iot_cleaning",
    "iot_coffee",
    "iot_hue_lightchange",
    "iot_hue_lightdim",
    "iot_hue_lightoff",
    "iot_hue_lighton",
    "iot_hue_lightup",
    "iot_wemo_off",
    "iot_wemo_on",
    "lists_createoradd",
    "lists_query",
    "lists_remove",
    "music_dislikeness",
    "music_likeness",
    "music_query",
    "music_settings",
    "news_query",
    "play_audiobook",
    "play_game",
    "play_music",
    "play_podcasts",
    "play_radio",
    "qa_currency",
    "qa_definition",
    "qa_factoid",
    "qa_maths",
    "qa_stock",
    "recommendation_events",
    "recommendation_locations",
    "recommendation_movies",
    "social_post",
    "social_query",
    "takeaway_order",
    "takeaway_query",
    "transport_query",
    "transport_taxi",
    "transport_ticket",
    "transport_traffic",
    "weather_query",
)
"""The sixty intents, sorted."""

SLOT_TYPES: tuple[str, ...] = (
    "alarm_type",
    "app_name",
    "artist_name",
    "audiobook_author",
    "audiobook_name",
    "business_name",
    "business_type",
    "change_amount",
    "coffee_type",
    "color_type",
    "cooking_type",
    "currency_name",
    "date",
    "definition_word",
    "device_type",
    "drink_type",
    "email_address",
    "email_folder",
    "event_name",
    "food_type",
    "game_name",
    "game_type",
    "general_frequency",
    "house_place",
    "ingredient",
    "joke_type",
    "list_name",
    "meal_type",
    "media_type",
    "movie_name",
    "movie_type",
    "music_album",
    "music_descriptor",
    "music_genre",
    "news_topic",
    "order_type",
    "person",
    "personal_info",
    "place_name",
    "player_setting",
    "playlist_name",
    "podcast_descriptor",
    "podcast_name",
    "radio_name",
    "relation",
    "song_name",
    "sport_type",
    "time",
    "time_zone",
    "timeofday",
    "transport_agency",
    "transport_descriptor",
    "transport_name",
    "transport_type",
    "weather_descriptor",
)
"""The fifty-five slot types, sorted; a word in none of them is "Other"."""

OTHER = "Other"
SPLITS = ("train", "dev", "test")
LOCALE = "en-US"
FILE_NAME = f"{LOCALE}.jsonl"
TARBALL_NAME = "amazon-massive-dataset-1.1.tar.gz"
UTTERANCES_IN_RELEASE = {"train": 11_514, "dev": 2_033, "test": 2_974}
LOST = 0.01  # of the entities, above which a warning says so
MISMATCHES = ("letter_case", "spelling", "word_count")

SAMPLE_DIR = Path(__file__).resolve().parents[1] / "sample"

log = logging.getLogger("data")


_Utterance = Annotated[str, msgspec.Meta(max_length=limits.UTTERANCE_CHARACTERS)]


class _Line(msgspec.Struct):
    """What is used of a line of the release."""

    id: str | int
    partition: str
    intent: str
    utt: _Utterance
    annot_utt: _Utterance
    locale: str = LOCALE


def load_massive(path: Path, split: str) -> list[Example]:
    """Read one split and log what was found; see :func:`read_massive`."""
    examples, counts = read_massive(path, split)
    n_read = sum(tag.startswith("B-") for example in examples for tag in example.bio["slots"])
    lost = counts["entities_lost"]
    log.info(
        "massive %s: %d utterances, %d words, %d slot entities; %d empty; annotations that do not match their "
        "utterance: %d by letter case, %d by spelling, %d by number of words (%d entities lost)",
        split,
        len(examples),
        sum(len(example.words) for example in examples),
        n_read,
        counts["empty"],
        *(counts[kind] for kind in MISMATCHES),
        lost,
    )
    if lost > LOST * (n_read + lost):
        log.warning("massive %s: words are parted by spaces; %d of %d slot entities have no word of their own and are "
                    "lost", split, lost, n_read + lost)  # fmt: skip
    others = counts["other_locale"]
    is_release = len(examples) == UTTERANCES_IN_RELEASE[split] and not others
    if not is_release and not path.resolve().is_relative_to(SAMPLE_DIR):
        log.warning(
            "massive %s: %d utterances%s, but MASSIVE 1.1 en-US has %d; scores on other data cannot be compared with "
            "published ones",
            split,
            len(examples),
            f", {others} of another locale" if others else "",
            UTTERANCES_IN_RELEASE[split],
        )
    return examples


def read_massive(path: Path, split: str) -> tuple[list[Example], Counter[str]]:
    """Read one split.

    Args:
        path: a JSON-lines file of MASSIVE's format, also packed (``.gz``); the release tarball; or a folder that holds
            ``en-US.jsonl`` or the tarball, directly or in ``massive/``, ``data/`` or ``1.1/data/``. Only en-US is read,
            unless ``path`` is the file of another language.
        split: ``"train"``, ``"dev"`` or ``"test"``, matched against each line's ``partition``.

    Returns:
        The examples, in the file's order, and counts: ``empty`` utterances, those of an ``other_locale``, and the
        mismatches described at the top of this file.

    Raises:
        UserError: no such split, or nothing found at ``path``. Or, with file and line number: a line that is not
            UTF-8 or not JSON, lacks a key, repeats an id, has unbalanced brackets, or names an intent, slot
            type or partition that does not exist. Lines of other splits are checked too.
    """
    if split not in SPLITS:
        raise UserError(f"massive has no split {split!r}.{nearest(split, SPLITS)}")
    with readable(Path(path)):
        source, content = _find(Path(path))
    if problem := not_text(content[:START], PurePosixPath(source).name):
        raise UserError(f"{source}: {problem}")
    counts: Counter[str] = Counter()
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        row = _parse_line(line, where)
        name = f"massive/{row.partition}/{row.id}"
        if name in seen:
            raise UserError(f"{where}: id {str(row.id)!r} was already used in line {seen[name]}; ids must differ.")
        seen[name] = number
        annotated = _parse_annotation(row.annot_utt, where)
        if row.partition != split:
            continue
        slots, bio = align(row.utt.split(), annotated, row.annot_utt.count("["), OTHER, counts)
        counts["empty"] += not row.utt.strip()
        counts["other_locale"] += row.locale != LOCALE
        labels: dict[str, str | tuple[str, ...]] = {"intent": row.intent, "slots": slots}
        examples.append(Example(id=name, text=row.utt, labels=labels, bio={"slots": bio}))
    if not examples:
        raise UserError(f"{source}: none of its {len(seen)} utterances is in the split {split!r}.")
    return examples, counts


def _find(path: Path) -> tuple[str, bytes]:
    """Return the name to show for the file at ``path``, and its content."""
    if is_tarball(path):
        return _from_tarball(path)
    if path.is_file():
        return str(path), _unpacked(path) if is_packed(path) else read_bytes(path, limits.TAR_MEMBER_BYTES)
    for folder in (path, path / "massive", path / "data", path / "1.1" / "data"):
        if (folder / FILE_NAME).is_file():
            return str(folder / FILE_NAME), read_bytes(folder / FILE_NAME, limits.TAR_MEMBER_BYTES)
        if is_tarball(folder / TARBALL_NAME):
            return _from_tarball(folder / TARBALL_NAME)
    what = f"no {FILE_NAME} and no {TARBALL_NAME} in it" if path.is_dir() else "no such file or folder"
    raise UserError(
        f"MASSIVE not found at {path}: {what}. Give the JSON-lines file, its folder or the release tarball; "
        "python -m data.download massive fetches it."
    )


def _unpacked(path: Path) -> bytes:
    with unpacking(str(path)), gzip.open(path) as file:
        content = file.read(limits.TAR_MEMBER_BYTES + 1)
    if len(content) > limits.TAR_MEMBER_BYTES:
        raise UserError(f"{path}: more than {limits.TAR_MEMBER_BYTES:,} bytes when unpacked, the limit.")
    return content


def _from_tarball(path: Path) -> tuple[str, bytes]:
    found = list(islice(iterate_tarball(path, lambda name: name.split("/")[-1] == FILE_NAME), 2))
    if len(found) != 1:
        how_many = "several" if found else "no"
        raise UserError(f"{path}: {how_many} files named {FILE_NAME}; the release has one.")
    name, content = found[0]
    return f"{path}:{name}", content


def _parse_line(line: bytes, where: str) -> _Line:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = not_utf8(line, "-", utf8_elsewhere=False)
        raise UserError(f"{where}: {problem}") from error
    row: _Line = parse_line(text, where, _Line)
    for name, value, known in (("partition", row.partition, SPLITS), ("intent", row.intent, INTENTS)):
        if value not in known:
            raise UserError(f"{where}: {name} {value!r} does not exist.{nearest(value, known)}")
    return row


def _parse_annotation(annotation: str, where: str) -> list[AnnotatedWord]:
    """Split ``"wake me at [time : nine am]"`` into words with their types; types are checked."""
    letters: list[tuple[str, str | None, int | None]] = []  # each with its slot and bracket
    for bracket, (slot, text) in enumerate(_pieces(annotation, where)):
        letters += [(letter, slot, bracket if slot else None) for letter in text]

    words: list[AnnotatedWord] = []
    start = 0
    for end in range(len(letters) + 1):
        if end < len(letters) and not letters[end][0].isspace():
            continue
        if end > start:  # a word has the slot of its first letter in a bracket: "friday," in "[date : friday],"
            _, slot, its_bracket = next((letter for letter in letters[start:end] if letter[1]), letters[start])
            words.append(AnnotatedWord("".join(letter for letter, _, _ in letters[start:end]), slot, its_bracket))
        start = end + 1
    return words


def _pieces(annotation: str, where: str) -> Iterator[tuple[str | None, str]]:
    """Yield ``(slot type, text)`` for each bracket and ``(None, text)`` for the text between brackets."""

    def broken(why: str) -> UserError:
        return UserError(f"{where}: {why} in annot_utt {annotation!r}; a slot is written [type : words].")

    rest = annotation
    while rest:
        plain, opening, rest = rest.partition("[")
        if "]" in plain:
            raise broken("a ']' without its '['")
        yield None, plain
        if not opening:
            return
        inside, closing, rest = rest.partition("]")
        if not closing:
            raise broken("a '[' without its ']'")
        if "[" in inside:
            raise broken("a '[' inside a '['")
        slot, colon, text = (part.strip() for part in inside.partition(":"))
        if not colon:
            raise broken(f"a bracket without ':' ({inside!r})")
        if slot not in SLOT_TYPES:
            raise UserError(f"{where}: slot type {slot!r} does not exist.{nearest(slot, SLOT_TYPES)}")
        if not text:
            raise broken(f"a slot without words ({inside!r})")
        yield slot, text
