"""Scoring encoders: against transformers' own logits, packed against alone, ranks against one, and what is cut off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from checkpoints_tools.heads import heads_for
from data.answers import iob2
from data.encoder.samples import tag_set
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.example import Example
from data.source import load_examples
from data.tasks import TASKS, MultiField, Task, TokenField
from eval.combine import combine
from eval.job import ScoringJob, ScoringRanks
from eval.probabilities import N_TOP
from eval.results import Results, field_kinds, label_sets, read_predictions, write_run
from eval.score import score
from model.encoder import ROBERTA_BASE
from tests.encoder_exports import random_encoder
from tests.encoder_reference import ours_from, reference, scaled_down
from tests.encoder_tokenizers import write_bert, write_roberta
from train.parallel.distributed import leave_group

BERT = replace(ROBERTA_BASE, family="bert", position_offset=0, n_token_types=2, norm_eps=1e-12)
FAMILIES = {"roberta": ROBERTA_BASE, "bert": BERT}
MAX_LENGTH = 48
JOINT = TASKS["massive_joint"]
MARKS = MultiField("marks", ("x", "y", "z", "u", "v", "w", "t"))
THREE = replace(JOINT, fields=(*JOINT.fields, MARKS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    texts = [e.text for name in ("20ng", "massive") for e in load_examples(name, "train", "sample")]
    roberta = write_roberta(tmp_path_factory.mktemp("roberta"), texts, vocab_size=800)["files"]
    return {"roberta": roberta, "bert": write_bert(tmp_path_factory.mktemp("bert"), texts, vocab_size=800)}


def config_for(task, tokenizer, family="roberta", head="linear"):
    small = scaled_down(FAMILIES[family], *heads_for(task), head=head)
    return replace(small, vocab_size=tokenizer.vocab_size, max_position=MAX_LENGTH)


def marked(examples):
    return [replace(e, labels=e.labels | {"marks": MARKS.labels[i % 3 : i % 5]}) for i, e in enumerate(examples)]


def job(task, tokenizer, examples, **options):
    return ScoringJob(task, tokenizer, examples, MAX_LENGTH, **options)


def same(predictions, others):
    """Equal but for rounding in the probabilities, which sums in another order leave."""
    rounded = {"top": {}, "multi_top": {}, "log_probs": {}}
    assert [replace(p, **rounded) for p in predictions] == [replace(p, **rounded) for p in others]
    for p, q in zip(predictions, others, strict=True):
        for name, likeliest in (p.top | p.multi_top).items():
            again = (q.top | q.multi_top)[name]
            assert [value for _, value in likeliest] == pytest.approx([value for _, value in again], abs=1e-5)
        for name, log_probs in p.log_probs.items():
            assert log_probs == pytest.approx(q.log_probs[name], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "name, head", [("20ng_20", "linear"), ("massive_intent", "dense"), ("massive_slots", "linear")]
)
def test_labels_are_the_argmax_of_transformers_logits(folders, family, name, head):
    task, tokenizer = TASKS[name], load_encoder_tokenizer(folders[family])
    (field,) = task.fields
    config = config_for(task, tokenizer, family, head)
    hf = reference(config)
    with torch.no_grad():
        for parameter in hf.base_model.encoder.parameters():  # or the answer hardly depends on the document
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    examples = load_examples(task, "test", "sample")[:25]
    result = score(ours_from(hf, config), job(task, tokenizer, examples))
    assert len({str(p.parsed) + str([label for label, _ in p.top.get(field.name, [])]) for p in result.predictions}) > 3
    assert [p.id for p in result.predictions] == [e.id for e in examples]
    for example, prediction in zip(examples, result.predictions, strict=True):
        if name == "massive_slots":
            ids, first = tokenizer.encode_words(example.words)
        else:
            ids, first = tokenizer.encode(example.text), []
        ids = ids[: MAX_LENGTH - 2]
        with torch.no_grad():
            logits = hf(input_ids=torch.tensor([[tokenizer.cls_id, *ids, tokenizer.sep_id]])).logits[0]
        if isinstance(field, TokenField):
            tags = [tag_set(field)[int(logits[1 + place].argmax())] for place in first]
            assert prediction.parsed_bio[field.name] == iob2(tags)
            assert prediction.parsed[field.name] == tuple("Other" if t == "O" else t[2:] for t in tags)
            assert prediction.top == {}
            continue
        p = (logits if logits.dim() == 1 else logits[0]).softmax(-1)  # a linear head is transformers' token head
        likeliest = p.topk(N_TOP)
        top = prediction.top[field.name]
        assert prediction.parsed[field.name] == top[0][0] == field.labels[int(p.argmax())]
        assert [label for label, _ in top] == [field.labels[int(i)] for i in likeliest.indices]
        assert [value for _, value in top] == pytest.approx(likeliest.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_multi_field_has_the_labels_above_one_half_of_transformers_sigmoid(folders, family):
    task, tokenizer = Task("marks", "custom", (MARKS,)), load_encoder_tokenizer(folders[family])
    config = config_for(task, tokenizer, family, "dense")
    hf = reference(config)
    with torch.no_grad():
        for parameter in [*hf.base_model.encoder.parameters(), *hf.classifier.parameters()]:
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    examples = marked(load_examples("massive", "test", "sample")[:25])
    result = score(ours_from(hf, config), job(task, tokenizer, examples))
    assert len({p.parsed["marks"] for p in result.predictions}) > 3
    for example, prediction in zip(examples, result.predictions, strict=True):
        ids = tokenizer.encode(example.text)[: MAX_LENGTH - 2]
        with torch.no_grad():
            p = hf(input_ids=torch.tensor([[tokenizer.cls_id, *ids, tokenizer.sep_id]])).logits[0].sigmoid()
        assert prediction.parsed["marks"] == tuple(
            label for label, one in zip(MARKS.labels, p, strict=True) if one > 0.5
        )
        n_shown = max(N_TOP, len(prediction.parsed["marks"]))
        assert [label for label, _ in prediction.multi_top["marks"]] == [
            MARKS.labels[i] for i in p.topk(n_shown).indices
        ]
        shown = [value for _, value in prediction.multi_top["marks"]]
        assert shown == pytest.approx(p.topk(n_shown).values.tolist(), abs=1e-5)
        assert prediction.top == {} and prediction.gold == {"marks": example.labels["marks"]}


def score_on_rank(rank, world_size, folder, examples, port_file, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=world_size)
    tokenizer = load_encoder_tokenizer(folder)
    model = random_encoder(config_for(THREE, tokenizer))
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    ranks = ScoringRanks(rank=rank, world_size=world_size, sharded=True, passes=dist.group.WORLD)
    result = score(model, job(THREE, tokenizer, examples, max_batch_tokens=1), ranks)
    torch.save((result, len(passes)), f"{out}{rank}")
    leave_group()


def test_neither_packing_nor_ranks_change_an_answer(folders, tmp_path):
    tokenizer = load_encoder_tokenizer(folders["roberta"])
    examples = marked(load_examples(JOINT, "test", "sample")[:9])
    model, passes, done = random_encoder(config_for(THREE, tokenizer)), [], []
    model.register_forward_hook(lambda *_: passes.append(1))
    packed = score(model, job(THREE, tokenizer, examples), progress=done.append)
    assert len(passes) == 1 and sum(done) == 9
    assert len({p.parsed["intent"] for p in packed.predictions}) > 1
    assert len({str(p.multi_top["marks"]) for p in packed.predictions}) == 9
    assert len({kind for p in packed.predictions for kind in p.parsed["slots"]}) > 2
    alone = score(model, job(THREE, tokenizer, examples, max_batch_tokens=1))
    assert len(passes) == 1 + 9
    mp.spawn(score_on_rank, (2, folders["roberta"], examples, tmp_path / "meet", tmp_path / "out"), nprocs=2)
    (together, n_first), (figures, n_second) = (
        torch.load(tmp_path / f"out{rank}", weights_only=False) for rank in range(2)
    )
    same(packed.predictions, alone.predictions)
    same(packed.predictions, together.predictions)
    assert n_first == n_second == 5, "nine rows on two ranks: one of them runs a dummy"
    assert together.metrics == figures.metrics
    for metrics in (alone.metrics, together.metrics):
        assert metrics["exact_match"] == packed.metrics["exact_match"]
        for name, own in packed.metrics["fields"].items():
            again = metrics["fields"][name]
            assert again.pop("per_label", None) == own.get("per_label")
            assert again == pytest.approx({key: x for key, x in own.items() if key != "per_label"}, abs=1e-5)
    assert packed.counts == together.counts and figures.predictions == []
    assert packed.cost["computed_tokens"] == packed.cost["prompt_tokens"] == together.cost["computed_tokens"]


def test_dropout_is_off_while_scoring_and_on_again_after(folders):
    tokenizer = load_encoder_tokenizer(folders["roberta"])
    examples = load_examples(JOINT, "test", "sample")[:9]
    model = random_encoder(config_for(JOINT, tokenizer)).train()
    assert model.config.dropout > 0
    results = [score(model, job(JOINT, tokenizer, examples)) for _ in range(2)]
    assert model.training and results[0].predictions == results[1].predictions
    assert model.eval() and score(model, job(JOINT, tokenizer, examples)) and not model.training


def test_words_out_of_reach_are_other_and_counted(folders):
    tokenizer = load_encoder_tokenizer(folders["bert"])
    model = random_encoder(config_for(JOINT, tokenizer, family="bert"))
    with torch.no_grad():
        model.heads["slots"].out.bias[0] = -1e4  # never "O" where the model sees a word
    words = [["please"] * 70, ["wake", "\u200b", "me"], []]  # too long; a word that BERT drops; nothing at all
    labels = [{"intent": "alarm_set", "slots": ("Other",) * len(own)} for own in words]
    examples = [Example(str(i), " ".join(own), labels[i]) for i, own in enumerate(words)]
    assert tokenizer.encode_words(examples[1].words)[1].count(-1) == 1
    result = score(model, job(JOINT, tokenizer, examples))
    long, odd, empty = result.predictions
    assert [p.truncated for p in result.predictions] == [True, False, False] and result.counts["truncated"] == 1
    seen = sum(kind != "Other" for kind in long.parsed["slots"])
    assert 0 < seen <= MAX_LENGTH - 2 and set(long.parsed["slots"][seen:]) == {"Other"}
    assert len(long.parsed["slots"]) == 70 and long.n_missing == 70 - seen
    assert [kind == "Other" for kind in odd.parsed["slots"]] == [False, True, False] and odd.n_missing == 1
    assert (long.n_labels, odd.n_labels) == ({"slots": seen}, {"slots": 2})
    assert empty.parsed["slots"] == () and empty.n_missing == 0 and not empty.n_labels and empty.top["intent"]
    assert result.counts["labels_missing"] == 71 - seen and result.metrics["n_unparsed"] == 0


NAMES = ("massive_intent", "massive_slots")


def test_probabilities_come_back_from_disk_and_two_runs_combine(folders, tmp_path):
    tokenizer = load_encoder_tokenizer(folders["roberta"])
    runs, folders_written = [], []
    for name in NAMES:
        task = TASKS[name]
        examples = load_examples(task, "test", "sample")[:6]
        runs.append(score(random_encoder(config_for(task, tokenizer)), job(task, tokenizer, examples)))
        result = runs[-1]
        folder = tmp_path / name
        results = Results(name, name, field_kinds(task), "sample", "test", result.metrics, cost=result.cost)
        results.labels = label_sets(task)
        write_run(folder, results, result.predictions)
        assert read_predictions(folder) == result.predictions
        folders_written.append(folder)
    joint = combine(*folders_written, tmp_path / "joint")
    assert joint.metrics["fields"] == runs[0].metrics["fields"] | runs[1].metrics["fields"]
    assert joint.metrics["coverage"] == runs[0].metrics["coverage"] and joint.labels == label_sets(TASKS[NAMES[0]])
    assert [p.top for p in read_predictions(tmp_path / "joint")] == [p.top for p in runs[0].predictions]
    assert all(len(p.top["intent"]) == N_TOP for p in runs[0].predictions)
