"""20 Newsgroups (the "bydate" release) to examples."""

from __future__ import annotations

GROUPS: tuple[str, ...] = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)
"""The twenty groups, sorted."""

ROOTS: tuple[str, ...] = (
    "alt",
    "comp",
    "misc",
    "rec",
    "sci",
    "soc",
    "talk",
)
"""What stands before a group's first dot: the seven-class labels, sorted."""
