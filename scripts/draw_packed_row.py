"""Draw the README's picture, a packed row with its shared prefix, from the code that packs and masks rows.

python scripts/draw_packed_row.py [docs/packed_row.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch, Rectangle

from data.decoder.rows import PackedRow, build_row
from data.decoder.samples import SampleSet
from data.packing import IGNORE, PADDING_DOC, SHARED_DOC
from model.attention import allowed

END = "<end>"
PREFIX = ["Which", "intent", "?"]
SAMPLES = [(["wake", "me", "at", "nine"], ["alarm", END]), (["play", "jazz"], ["music", END]), (["hi"], ["greet", END])]
N_PADDING = 2
COLORS = {SHARED_DOC: "#f2b84b", 1: "#6aa5d8", 2: "#7fbf7b", 3: "#c58fc9", PADDING_DOC: "#e4e4e4"}
NAMES = {SHARED_DOC: "shared prefix (document 0)", 1: "sample 1", 2: "sample 2", 3: "sample 3", PADDING_DOC: "padding"}


def packed_row() -> tuple[PackedRow, list[str]]:
    """The row, and the word of each token id."""
    words = list(dict.fromkeys([*PREFIX, *(word for body, label in SAMPLES for word in (*body, *label))]))
    ids = [[words.index(word) for word in (*body, *label)] for body, label in SAMPLES]
    ends = np.cumsum([len(sample) for sample in ids])
    samples = SampleSet(
        prefix=np.array([words.index(word) for word in PREFIX], dtype=np.int32),
        ids=[f"sample {i}" for i in range(1, len(SAMPLES) + 1)],
        tokens=np.array([token for sample in ids for token in sample], dtype=np.int32),
        body_end=ends - np.array([len(label) for _, label in SAMPLES]),
        label_end=ends,
        document_tokens=np.array([len(body) for body, _ in SAMPLES], dtype=np.int32),
        truncated=np.zeros(len(SAMPLES), dtype=bool),
    )
    indices = range(len(SAMPLES))
    length = len(PREFIX) + sum(samples.cost(i) for i in indices) + N_PADDING
    return build_row(samples, indices, share_prefix=True, length=length), words


def draw(path: Path) -> None:
    row, words = packed_row()
    docs, n = row.doc_ids.tolist(), len(row.tokens)
    tokens = ["" if doc == PADDING_DOC else words[t] for t, doc in zip(row.tokens, docs, strict=True)]
    targets = ["" if t == IGNORE else words[t] for t in row.targets]
    attends = allowed(torch.from_numpy(row.doc_ids)[None])[0].numpy()  # [T, T]

    figure, (strip, mask) = plt.subplots(1, 2, figsize=(13, 4.0), width_ratios=[2.1, 1])
    rows = (("token", tokens), ("position", [str(p) for p in row.positions]), ("target", targets))
    for y, (name, texts) in enumerate(rows):
        strip.text(-0.2, y + 0.5, name, ha="right", va="center", fontsize=11)
        for x, (text, doc) in enumerate(zip(texts, docs, strict=True)):
            fill = COLORS[doc] if name == "token" or (name == "target" and text) else "white"
            strip.add_patch(Rectangle((x, y), 1, 1, facecolor=fill, edgecolor="#777777", linewidth=0.8))
            if doc != PADDING_DOC:
                strip.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8.5)
    strip.set_xlim(-1.9, n + 0.1)
    strip.set_ylim(4.6, -0.6)
    strip.set_title("One packed row: the instruction once, then the samples end to end", fontsize=12)
    handles = [Patch(facecolor=COLORS[doc], edgecolor="#777777", label=name) for doc, name in NAMES.items()]
    strip.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=10)
    strip.axis("off")

    for i in range(n):
        for j in range(n):
            fill = COLORS[docs[j]] if attends[i, j] else "white"
            mask.add_patch(Rectangle((j, i), 1, 1, facecolor=fill, edgecolor="#cccccc", linewidth=0.5))
    mask.set_xlim(0, n)
    mask.set_ylim(n, 0)
    mask.set_aspect("equal")
    mask.set_xticks([])
    mask.set_yticks(np.arange(n) + 0.5, tokens, fontsize=7.5)
    mask.tick_params(length=0)
    mask.set_title("Who attends to whom", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs") / "packed_row.png")
