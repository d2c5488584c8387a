"""The paper's "dual" set-up: join two single-task runs over the same examples and score them as one joint run.

The result can be compared with a consolidated model, which answers both tasks in one call: each field, exact
match, and the cost of two calls.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from data.example import hash_examples
from eval.output import check_free, output_folder
from eval.provenance import place_of, versions
from eval.results import (
    TRAINED_ON,
    Prediction,
    Results,
    count_oddities,
    measure,
    read_predictions,
    read_results,
    stored_task,
    write_run,
)

SHOWN = 5  # ids named in an error message

log = logging.getLogger("eval")


def combine_runs(folder_a: Path, folder_b: Path) -> tuple[Results, list[Prediction]]:
    """Join two runs' predictions by example id; seconds and tokens are summed.

    Raises:
        UserError: a run is itself joined of two, or the runs share a field, or have different examples, texts, gold
            labels or numbers of shots.
    """
    a, b = read_results(folder_a), read_results(folder_b)
    for folder, run in ((folder_a, a), (folder_b, b)):
        if "combined" in run.settings:
            raise UserError(f"{folder} is itself two runs that were joined ({run.task}). --combine joins two runs that "
                            "eval.py or eval.baselines scored; it does not join three.")  # fmt: skip
    shared = a.fields.keys() & b.fields.keys()
    if shared:
        raise UserError(
            f"both runs answer {', '.join(sorted(shared))} ({folder_a}: {a.task}, {folder_b}: {b.task}). "
            "--combine joins two single-task runs of different tasks; to compare runs of one task use --compare."
        )
    pairs = _pair(folder_a, a, folder_b, b)
    if a.texts and b.texts and a.texts != b.texts:
        raise UserError(f"{folder_a} and {folder_b} have other texts under the same ids. Score both on the same data.")
    has_lenient = _has_lenient(folder_a, folder_b, pairs)
    predictions = [_join(p, q, has_lenient) for p, q in pairs]
    below = _threshold(folder_a, a, folder_b, b)
    results = Results(
        system=f"{a.system} + {b.system}",
        task=f"{a.task}+{b.task}",
        fields={**a.fields, **b.fields},
        data=_both(a.data, b.data),
        split=_both(a.split, b.split),
        metrics={},
        model=_both(a.model, b.model),
        checkpoint=" + ".join(filter(None, (a.checkpoint, b.checkpoint))),
        weights=" + ".join(filter(None, (a.weights, b.weights))),
        shots=a.shots,
        counts=_counts(a, b, predictions),
        cost=_cost(a, b),
        examples=hash_examples([p.example for p in predictions]),
        texts=a.texts if a.texts == b.texts else "",
        settings={"combined": [_origin(a), _origin(b)], "temperature": a.temperatures | b.temperatures}
        | ({} if below is None else {"abstain_below": below}),
        versions=versions(),
        labels={**a.labels, **b.labels},
        others={**a.others, **b.others},
    )
    if a.shots != b.shots:
        raise UserError(f"{folder_a} was scored with {a.shots} shots, {folder_b} with {b.shots}; they must be equal.")
    examples = [p.example for p in predictions]
    results.metrics = measure(stored_task(results), examples, predictions, results.temperatures, below)
    return results, predictions


def combine(folder_a: Path, folder_b: Path, output: Path, name: str | None = None) -> Results:
    """Join two runs and write the joint run to ``output``, in the same format; ``name`` is its name in tables.

    Raises:
        UserError: see `combine_runs`, `eval.output.output_folder` and `check_free`.
    """
    with output_folder(output):
        results, predictions = combine_runs(folder_a, folder_b)
        results.system = name or results.system
        check_free(output, results)
        write_run(output, results, predictions)
    return results


def _pair(folder_a: Path, a: Results, folder_b: Path, b: Results) -> list[tuple[Prediction, Prediction]]:
    by_place: list[dict[str, Prediction]] = []
    for folder, results in ((folder_a, a), (folder_b, b)):
        predictions = read_predictions(folder, results)
        if twice := [i for i, n in Counter(p.id for p in predictions).items() if n > 1]:
            raise UserError(f"{folder}: examples scored twice: {_some(twice)}. Score again.")
        by_place.append({place_of(p.id, results.task): p for p in predictions})
    ours, theirs = by_place
    only_a = [p.id for place, p in ours.items() if place not in theirs]
    only_b = [p.id for place, p in theirs.items() if place not in ours]
    if only_a or only_b:
        raise UserError(
            f"the runs have different examples: {len(only_a)} only in {folder_a} ({_some(only_a)}), "
            f"{len(only_b)} only in {folder_b} ({_some(only_b)}). "
            "Score both with the same --data, --split and --limit."
        )
    return [(p, theirs[place]) for place, p in ours.items()]


def _has_lenient(folder_a: Path, folder_b: Path, pairs: Sequence[tuple[Prediction, Prediction]]) -> bool:
    """Whether the joint run has the lenient reading: one run has it, and the other has it too or writes no text.

    Labels that are not written as text are the same in both readings. If older code scored the other run's text,
    without this reading, a warning says so.
    """
    has, lacks = set[Path](), set[Path]()
    for pair in pairs:
        for folder, prediction in zip((folder_a, folder_b), pair, strict=True):
            if prediction.lenient is not None:
                has.add(folder)
            elif prediction.raw:
                lacks.add(folder)
    if has and lacks:
        log.warning("%s has no lenient reading of its answers, because older code scored it: the joint run has none. "
                    "Score it again to have one.", *lacks)  # fmt: skip
    return bool(has) and not lacks


def _join(p: Prediction, q: Prediction, has_lenient: bool) -> Prediction:
    for name in p.gold.keys() & q.gold.keys():
        if p.gold[name] != q.gold[name]:
            raise UserError(f"example {p.id}: the runs have different gold {name}. Score both on the same data.")
    return Prediction(
        id=p.id,
        gold={**p.gold, **q.gold},
        gold_bio={**p.gold_bio, **q.gold_bio},
        raw="\n".join(filter(None, (p.raw, q.raw))),
        parsed={**p.parsed, **q.parsed},
        parsed_bio={**p.parsed_bio, **q.parsed_bio},
        unparsed=(*p.unparsed, *q.unparsed),
        truncated=p.truncated or q.truncated,
        stopped=p.stopped and q.stopped,
        n_prompt_tokens=p.n_prompt_tokens + q.n_prompt_tokens,
        n_new_tokens=p.n_new_tokens + q.n_new_tokens,
        n_missing=p.n_missing + q.n_missing,
        n_extra=p.n_extra + q.n_extra,
        n_unknown=p.n_unknown + q.n_unknown,
        n_not_found=p.n_not_found + q.n_not_found,
        n_labels={**p.n_labels, **q.n_labels},
        top={**p.top, **q.top},
        multi_top={**p.multi_top, **q.multi_top},
        log_probs={**p.log_probs, **q.log_probs},
        abstained=(*p.abstained, *q.abstained),
        lenient={**(p.lenient or {}), **(q.lenient or {})} if has_lenient else None,
    )


def _counts(a: Results, b: Results, joined: Sequence[Prediction]) -> dict[str, int]:
    """Counts of the joint predictions; of what these do not tell (refusals, say), the sums over both runs' answers.

    Of texts that a model was trained on, it is the number of the run that has more: both runs have the same texts.
    """
    sums = Counter({"limit_shortened": 0})  # only decoders have it
    for run in (a, b):
        sums.update(run.counts)
    if any(TRAINED_ON in run.counts for run in (a, b)):
        sums[TRAINED_ON] = max(run.counts.get(TRAINED_ON, 0) for run in (a, b))
    own = count_oddities(joined)
    return own | {name: n for name, n in sums.items() if name not in own}


def _cost(a: Results, b: Results) -> dict[str, float]:
    """Sums of the costs that both runs have; the dollars of the only run behind an API, since no other is charged."""
    cost = {name: a.cost[name] + b.cost[name] for name in a.cost if name in b.cost}
    charged = [run for run in (a, b) if "api_model" in run.settings]
    if len(charged) == 1 and "dollars" in charged[0].cost:
        cost["dollars"] = charged[0].cost["dollars"]
    return cost


def _threshold(folder_a: Path, a: Results, folder_b: Path, b: Results) -> float | None:
    """The ``--abstain_below`` of the runs whose labels have probabilities; None if they differ, which is said."""
    given = [run.settings.get("abstain_below") for run in (a, b) if run.labels]
    if len(given) == 2 and given[0] != given[1]:
        first, second = ("no --abstain_below" if below is None else f"--abstain_below {below}" for below in given)
        log.warning("%s was scored with %s, %s with %s: the joint run has no figures of abstaining. Score both with "
                    "the same to have them.", folder_a, first, folder_b, second)  # fmt: skip
        return None
    return given[0] if given else None


def _origin(results: Results) -> dict[str, str]:
    return {"system": results.system, "task": results.task, "checkpoint": results.checkpoint}


def _both(a: str, b: str) -> str:
    return " + ".join(filter(None, dict.fromkeys((a, b))))


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "") if ids else "none"
