"""Token tries: several continuations of one text, whose common beginnings are fed to the model once.

Three continuations, all of which begin with ``{"``, and the trie that is fed for them. The last token of each is only
predicted::

    { " date " }                        {  "  date                  nodes, depth first
    { " date _time " }                             _time
    { " news " }                              news                  the logits of " decide between date and news,
                                                                    those of date between its end and _time
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenTrie:
    """Some continuations of a text as a tree, below the text's last token.

    Attributes:
        members: the continuations' indices in the sequence that they were given in.
        tokens: the tokens to feed, depth first, [n].
        depths: of each its distance from the text's last token, 1 for the first token after it, [n].
        ends: for each the index after the last token of its subtree, [n].
        outputs: the nodes whose logits are needed; -1 is the text's last token.
        edges: what is read from these logits: (index in ``outputs``, token).
        paths: for each member its edges; their log-probabilities add up to that of the continuation.
    """

    members: list[int]
    tokens: list[int]
    depths: list[int]
    ends: list[int]
    outputs: list[int]
    edges: list[tuple[int, int]]
    paths: list[list[int]]


def build_tries(continuations: Sequence[Sequence[int]], max_outputs: int) -> list[TokenTrie]:
    """The continuations as one trie, or as several if it needed the logits of more than ``max_outputs`` nodes.

    Tokens with which all continuations begin are fed, but their probabilities are not computed: they change nothing
    between the continuations.

    Raises:
        ValueError: one continuation is the beginning of another, or equal to it.
    """
    order = sorted(range(len(continuations)), key=lambda i: list(continuations[i]))
    for a, b in zip(order, order[1:], strict=False):
        if list(continuations[b][: len(continuations[a])]) == list(continuations[a]):
            raise ValueError(f"continuation {a} is the beginning of continuation {b}, or equal to it")
    n_common = len(os.path.commonprefix([list(tokens) for tokens in continuations]))
    tries = []
    builder = _Builder(n_common)
    for i in order:
        if builder.trie.members and len(builder.trie.outputs) + len(continuations[i]) - n_common > max_outputs:
            tries.append(builder.finished())
            builder = _Builder(n_common)
        builder.add(i, continuations[i])
    return [*tries, builder.finished()]


class _Builder:
    """Builds a trie from continuations in lexical order, which gives its nodes in depth-first order."""

    def __init__(self, n_common: int) -> None:
        self.trie = TokenTrie([], [], [], [], [], [], [])
        self.n_common = n_common
        self.path: list[int] = []  # nodes of the last continuation, without its last token
        self.last: list[int] = []
        self.output: dict[int, int] = {}  # node -> index in outputs
        self.edge: dict[tuple[int, int], int] = {}

    def add(self, member: int, continuation: Sequence[int]) -> None:
        trie, tokens = self.trie, list(continuation)
        n_shared = len(os.path.commonprefix([self.last, tokens]))
        self._leave(n_shared)
        for depth in range(n_shared, len(tokens) - 1):
            self.path.append(len(trie.tokens))
            trie.tokens.append(tokens[depth])
            trie.depths.append(depth + 1)
            trie.ends.append(0)
        nodes = [-1, *self.path]
        trie.members.append(member)
        trie.paths.append([self._edge(nodes[k], tokens[k]) for k in range(self.n_common, len(tokens))])
        self.last = tokens

    def _edge(self, node: int, token: int) -> int:
        if node not in self.output:
            self.output[node] = len(self.trie.outputs)
            self.trie.outputs.append(node)
        edge = (self.output[node], token)
        if edge not in self.edge:
            self.edge[edge] = len(self.trie.edges)
            self.trie.edges.append(edge)
        return self.edge[edge]

    def _leave(self, n_shared: int) -> None:
        for node in self.path[n_shared:]:
            self.trie.ends[node] = len(self.trie.tokens)
        del self.path[n_shared:]

    def finished(self) -> TokenTrie:
        self._leave(0)
        return self.trie
