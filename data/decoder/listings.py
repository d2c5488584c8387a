"""The paper's listings 1 to 12, word by word: the texts of ``--wording paper``.

Typos, quotation marks that never open and ``[INST]`` are theirs. A text begins after the listing's opening quotation
marks and their line break, and ends where the answer is written. ``data.decoder.prompts`` replaces the placeholders.

Zero-shot and five-shot listings of a task differ in one paragraph, which stands here for ``{Shots}``. Listing 5 has an
empty line more than the others; listings 3 and 4 write ``{{Examples}}`` for ``{Examples}``.
"""

from __future__ import annotations

from dataclasses import dataclass

LABELS, INTENTS, SLOTS, EXAMPLES = "{Labels}", "{Intent_Labels}", "{Slot_Filling_Labels}", "{Examples}"

_SHOTS = """
Bellow are some examples with the correct {What}:

Beginning of <<Examples>>
{Examples}
End of <<Examples>>
"""

_GROUPS = (
    "[’alt.atheism’, comp.graphics’, comp.os.ms-windows.misc’, comp.sys.ibm.pc.hardware’, comp.sys.mac.hardware’, "
    "comp.windows.x’, misc.forsale’, rec.autos’, rec.motorcycles’, rec.sport.baseball’, rec.sport.hockey’, sci.crypt’, "
    "sci.electronics’, sci.med’, sci.space’, soc.religion.christian’, talk.politics.guns’, talk.politics.mideast’, "
    "talk.politics.misc’, talk.religion.misc’]"
)
_ROOTS = '["alt", "comp", "misc", "rec", "sci", "soc", talk"]'

_NEWS = """You will be given a news text.
Your task is to classify it as one of the labels in the list {List}
{Shots}
Output the label only and absolutely nothing else.
Now it is your turn.

Beginning of <<News>>
{News}
End of <<News>>

Label:"""
_ROOT = _NEWS.replace("{List}", _ROOTS)
_GROUP = f"[INST]{_NEWS.replace('{List}', _GROUPS)} [/INST]"

_NEWS_JOINT = f"""[INST]You will be given a news text.
You are given two classification tasks.
You should output the result as a two json fields as {{"task1": "task1_label", "task2": "task2_label"}}
In the first task, given the news text, you are asked to classify it as one of the labels in the list {_ROOTS} and change task1_label to the correct label in the list.
In the second task, given the news text, you are asked to classify it as one of the labels in the list {_GROUPS} and change task2_label to the correct label in the list.
{{Shots}}
Output the two json fields only and absolutely nothing else.
Now it is your turn.

Beginning of <<News>>
{{News}}
End of <<News>>

Output: [/INST]"""  # noqa: E501

_INTENT = """You will be given an utter text.
Your task is to classifity it as one of the labels in the list {Labels}.
{Shots}
Output the label only and absolutely nothing else.
Now it is your turn.

Beginning of <<Utter>>
{Utter}
End of <<Utter>>

Label:"""

_SLOT = """You will be given an utter text.
Your task is to classify each of the word in the utter text as one of the labels in the list {Labels}.
If none of the labels in the list are correct, then output the label for that word as "Other".
Put all the labels in the slots list.
{Shots}
Output the Slots only and absolutely nothing else.
Now it is your turn.

Beginning of <<Utter>>
{Utter}
End of <<Utter>>

Slots:"""

_UTTER_SYSTEM = """You will be given an utter text.
You are given two classification tasks.
You should output the result as a two json fields as {"task1": "task1_label", "task2": "task2_label"}"""

_UTTER_JOINT = """In the first task, given the utter text, you are asked to classify it as one of the labels in the list {Intent_Labels}.
In the second task, given the utter text, you are asked to classify each of the word in the utter text as one of the labels in the list {Slot_Filling_Labels}. If none of the labels in the list are correct, then output the label for that word as "Other". Put all the labels in the slots list.
{Shots}
Output the two json fields only and absolutely nothing else.
Now it is your turn.

Beginning of <<Utter>>
{Utter}
End of <<Utter>>

Output:"""  # noqa: E501


@dataclass(frozen=True)
class Listing:
    """A task's two listings.

    Attributes:
        user: the text around the placeholders ``{Shots}`` and that of the document.
        system: the system text; empty if there is none.
        what: what the examples show.
        no_shots: what stands for ``{Shots}`` in the zero-shot listing.
    """

    user: str
    system: str = ""
    what: str = "classification"
    no_shots: str = ""

    def text(self, with_shots: bool) -> str:
        """The user's text of the five-shot or of the zero-shot listing, with its placeholders."""
        return self.user.replace("{Shots}", _SHOTS.replace("{What}", self.what) if with_shots else self.no_shots)


LISTINGS: dict[str, Listing] = {
    "20ng_20": Listing(_GROUP),  # listings 1 and 3
    "20ng_7": Listing(_ROOT),  # 2 and 4
    "20ng_joint": Listing(_NEWS_JOINT, no_shots="\n"),  # 5 and 6
    "massive_intent": Listing(_INTENT),  # 7 and 8
    "massive_slots": Listing(_SLOT, what="slot filling classification"),  # 9 and 10
    "massive_joint": Listing(_UTTER_JOINT, _UTTER_SYSTEM),  # 11 and 12
}
