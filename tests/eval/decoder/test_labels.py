"""The probability of every label equals what transformers gives when each label is scored by itself."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
from pathlib import Path

import pytest
import torch

from checkpoints_tools.registry import MODELS
from data.decoder.label_tokens import LabelTokens
from data.decoder.prompts import build_prompt
from data.decoder.templates import Prompt, encode_pieces
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.errors import UserError
from data.tasks import ClassField, Task, TokenField
from eval.decoder import labels as labels_module
from eval.decoder.decode import NotFiniteLogits
from eval.decoder.labels import Chosen, choose_labels
from eval.decoder.trie import build_tries
from model.llama import Llama
from tests.decoder_tokenizers import TINY
from tests.eval.decoder import labels_run
from tests.launching import command, environment
from tests.reference import ours_from, reference

DATES = ("date", "date_time", "date time", "da", "db", "dc")
ODD = ("naïve", "日本", '"x"', "a\\b", "it's", "日", "c++", "[b]", "}", "\n")
TEMPLATE = {"sentencepiece": "plain", "rank_file": "llama3", "json": "chatml"}

TASKS = {
    "bare": Task("bare", "custom", (ClassField("kind", DATES),)),
    "bare, odd": Task("odd", "custom", (ClassField("kind", ODD),)),
    "joint": Task("joint", "custom", (ClassField("a", DATES), ClassField("b", ODD), ClassField("c", ("x", "xx")))),
    "one label": Task("one", "custom", (ClassField("kind", ("only",)),)),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    task: Task
    prompt: Prompt
    tokenizer: Tokenizer
    hf: torch.nn.Module
    net: Llama
    prefix: list[int]
    bodies: list[list[int]]

    def labels(self) -> LabelTokens:
        return LabelTokens(self.task, self.prompt, self.tokenizer)


@pytest.fixture(scope="module", params=TINY)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def setting(kind: str, tmp_path_factory: pytest.TempPathFactory):
    tokenizer = load_tokenizer(TINY[kind](tmp_path_factory.mktemp(kind)))
    config = dataclasses.replace(MODELS["llama_debug"].config, vocab_size=tokenizer.vocab_size)
    hf = reference(config)
    net = ours_from(hf, config)

    def of(task: Task, n: int = 9) -> Setting:
        rng = random.Random(0)
        prompt = build_prompt(task, TEMPLATE[kind], list_labels=False)
        prefix, suffix = encode_pieces(prompt.prefix, tokenizer), encode_pieces(prompt.suffix, tokenizer)
        texts = ["".join(rng.choices("abc é日 \n", k=rng.choice([1, 3, 20]))) for _ in range(n)]
        return Setting(task, prompt, tokenizer, hf, net, prefix, [tokenizer.encode(text) + suffix for text in texts])

    return of


def tokens_of(setting: Setting, values: list[str]) -> list[int]:
    """The tokens of an answer up to the end of its last given value, found by reading every beginning of it."""
    task, tokenizer = setting.task, setting.tokenizer
    rest = [field.labels[0] for field in task.fields[len(values) :]]
    labels = dict(zip([field.name for field in task.fields], [*values, *rest], strict=True))
    ids = encode_pieces(setting.prompt.answer(task.write(labels)), tokenizer)
    if len(task.fields) == 1:
        return ids[: len(ids) - len(setting.prompt.end) + 1]
    key = f'"task{len(values)}": '
    for n in range(len(ids)):
        text = tokenizer.decode(ids[:n])
        try:
            value, _ = json.JSONDecoder().raw_decode(text[text.index(key) + len(key) :])
        except ValueError:
            continue
        assert value == values[-1]
        return ids[:n]
    raise AssertionError(values)


@torch.no_grad()
def one_by_one(setting: Setting, body: list[int], before: list[str]) -> torch.Tensor:
    """The normalized log-probabilities of a field's labels, one pass of transformers for each."""
    field = setting.task.fields[len(before)]
    scores = []
    for label in field.labels:
        tokens = tokens_of(setting, [*before, label])
        ids = torch.tensor([*setting.prefix, *body, *tokens])
        log_probs = setting.hf(ids[None]).logits[0].double().log_softmax(-1)
        scores.append(log_probs[len(ids) - len(tokens) - 1 : -1].gather(1, torch.tensor(tokens)[:, None]).sum())
    return torch.stack(scores).log_softmax(0)


def choose(setting: Setting, bodies: list[list[int]] | None = None, **options) -> list[Chosen]:
    bodies = setting.bodies if bodies is None else bodies
    return choose_labels(setting.net, setting.prefix, bodies, setting.labels(), **options)


@pytest.mark.parametrize("name", TASKS)
def test_every_label_scored_by_itself_through_transformers(setting, name: str) -> None:
    case = setting(TASKS[name])
    answers = choose(case)
    for body, answer in zip(case.bodies, answers, strict=True):
        for i, field in enumerate(case.task.fields):
            expected = one_by_one(case, body, answer.values[:i])
            found = answer.log_probs[field.name]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
            assert float(found.exp().sum()) == pytest.approx(1, abs=1e-9)
            assert answer.values[i] == field.labels[int(expected.argmax())]
    if name != "one label":  # the case this test is about: documents matter, and no label is certain
        first = torch.stack([answer.log_probs[case.task.fields[0].name] for answer in answers])
        assert first.std(dim=0).max() > 0.5 and first.exp().amax(dim=1).min() < 0.9


@pytest.mark.parametrize("name", ["bare, odd", "joint"])
@pytest.mark.parametrize("bounds", [{"max_batch_tokens": 1}, {"max_batch_tokens": 150}, {"max_batch_size": 2}])
def test_a_request_alone_has_the_same_probabilities(setting, name: str, bounds: dict[str, int]) -> None:
    case = setting(TASKS[name])
    alone, together = choose(case, **bounds), choose(case, max_batch_tokens=10**6)
    for one, other in zip(alone, together, strict=True):
        assert one.values == other.values
        for field in case.task.fields:
            torch.testing.assert_close(one.log_probs[field.name], other.log_probs[field.name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["bare, odd", "joint"])
def test_few_logits_at_a_time_change_nothing(setting, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries in several parts, several passes a batch, and one row of logits in fp32 at a time."""
    case = setting(TASKS[name])
    rows: list[int] = []
    handle = case.net.register_forward_hook(lambda module, args, logits: rows.append(logits.flatten(0, -2).shape[0]))
    whole = choose(case)
    n_passes = len(rows)
    monkeypatch.setattr(labels_module, "MAX_LOGITS", 12 * case.tokenizer.vocab_size)
    monkeypatch.setattr("eval.decoder.tree_passes.CHUNK", 1)
    rows.clear()
    parts = choose(case)
    handle.remove()
    assert max(rows) <= 12 and len(rows) > n_passes + 3
    for one, other in zip(parts, whole, strict=True):
        assert one.values == other.values
        for field in case.task.fields:
            torch.testing.assert_close(one.log_probs[field.name], other.log_probs[field.name], atol=1e-5, rtol=0)


def test_one_pass_for_all_labels_of_all_documents(setting) -> None:
    case = setting(TASKS["bare"])
    shapes: list[tuple[int, ...]] = []
    handle = case.net.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["tokens"].shape)), with_kwargs=True
    )
    choose(case, max_batch_tokens=10**6)
    handle.remove()
    (trie,) = build_tries(case.labels().of(()), 10**6)
    assert shapes == [(1, len(case.prefix)), (1, sum(len(body) + len(trie.tokens) for body in case.bodies))]


def test_each_request_is_handed_over_once(setting) -> None:
    case = setting(TASKS["joint"])
    seen: list[int] = []
    answers = choose(case, max_batch_tokens=200, finished=lambda found: seen.extend(found))
    assert sorted(seen) == list(range(len(answers)))
    assert choose(case, []) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_the_request(setting, value: float) -> None:
    case = setting(TASKS["bare"])
    (trie,) = build_tries(case.labels().of(()), 10**6)

    def damaged(module, args, logits):
        if len(logits) > 1:
            logits[-1, 17] = value
        return logits

    handle = case.net.register_forward_hook(damaged)
    try:
        with pytest.raises(NotFiniteLogits) as error:
            choose(case, max_batch_tokens=10**6)
    finally:
        handle.remove()
    assert error.value.request == min(range(len(case.bodies)), key=lambda i: (len(case.bodies[i]), -i))


def test_two_ranks_and_two_slices_give_the_same_probabilities(divisible_checkpoint: Path, tmp_path: Path) -> None:
    """FSDP with unequal and no requests, and tensor parallelism."""
    start = command(Path(labels_run.__file__), tmp_path, divisible_checkpoint, ranks=2)
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    for name in labels_run.TASKS:
        whole = labels_run.alone(divisible_checkpoint, name)
        sharded = [answer for rank in ranks for answer in rank["fsdp", name]]
        assert len(ranks[0]["fsdp", name]) != len(ranks[1]["fsdp", name])
        for answers in (sharded, ranks[0]["tensor", name], ranks[1]["tensor", name]):
            for one, other in zip(answers, whole, strict=True):
                assert one.values == other.values
                for field, log_probs in other.log_probs.items():
                    torch.testing.assert_close(one.log_probs[field], log_probs, atol=1e-4, rtol=0)
        nothing = ranks[0]["none", name], ranks[1]["none", name]
        assert (len(nothing[0]), len(nothing[1])) == (2, 0)


def test_a_label_that_the_tokenizer_changes_is_refused(setting, kind: str) -> None:
    if kind != "sentencepiece":
        pytest.skip("SentencePiece writes a space as U+2581")
    case = setting(Task("drinks", "custom", (ClassField("kind", ("a\u2581b", "c")),)))
    with pytest.raises(UserError, match="tokenizer makes .* of the answer .*Rename the label, or give --decode free"):
        case.labels().of(())


def test_later_fields_do_not_change_a_labels_tokens(setting) -> None:
    for field in (TokenField("rest", DATES), TokenField("rest", DATES, answer="spans"), ClassField("rest", ODD)):
        case = setting(Task("two", "custom", (ClassField("a", ODD), field)))
        other = setting(Task("two", "custom", (ClassField("a", ODD), dataclasses.replace(field, labels=("z", "y")))))
        assert case.labels().of(()) == other.labels().of(())
