"""Decode a pickle as data: nothing that it names is imported, and only functions of this code are called.

Python's unpickler imports and calls whatever a pickle names. That of torch (``weights_only``) has a list of what may be
called, but a pickle can still ask for a terabyte of memory or for a key that takes years to hash. This decoder knows
the steps that pickles of tensors, numbers, texts and containers are made of. Each name in the pickle must be in a
mapping that the caller gives, and stands for the value there. Everything else is refused before it has an effect.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from data.errors import UserError
from data.files import limits

# Steps that push their argument, and those that push something of their own.
_ARGUMENTS = frozenset("BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE".split())
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Values in the arguments of one call. (A tensor's: some 30.)
ARGUMENTS = 1_000
TRUSTED = "If you trust where the file is from, open it with PyTorch there and save its state_dict as safetensors"


class Unusable(ValueError):
    """What a pickle holds is not what the caller can use. `decode` adds the file's name."""


def decode(
    stream: BinaryIO,
    where: str,
    admitted: Mapping[str, Any],
    stored: Callable[[Any], Any] | None = None,
    steps: int = limits.PICKLE_STEPS,
) -> Any:
    """Decode the pickle at the position of ``stream``, and leave the position behind it.

    Args:
        stream: in memory, so that a number in the pickle cannot ask for more than there is.
        where: the file, for messages.
        admitted: name in the pickle ("torch.FloatStorage") → what stands for it. Where the pickle calls a name, this
            must be a function, which gets the arguments as a tuple and raises `Unusable` if they are wrong. Where it
            sets the state of a value, the value's ``set_state`` gets it, if it has one; a dict's is dropped.
        stored: what stands for a persistent id; None: there are none.
        steps: limit on the pickle's length.

    Raises:
        UserError: damaged, too long, or with a name or a step that is not admitted.
    """
    decoder = _Decoder(admitted, stored, steps)
    try:
        for count, (step, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= steps:
                raise Unusable(f"has more than {steps:,} steps, the limit for such a file")
            decoder.take(step.name, argument)
        found = decoder.stack.pop()
        check_size(found, steps)
        return found
    except Unusable as error:
        raise UserError(f"{where} {error}. The file was not read.") from None
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        # genops: a step is unknown or cut off; take: a step needs a value, or an earlier one, that is not there.
        reason = str(error).splitlines()[0] if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise UserError(f"{where} is truncated or damaged ({reason}).") from None


def check_size(value: Any, limit: int) -> None:
    """Refuse a value that has more values in it than ``limit``, when each is counted wherever it stands.

    A pickle can put the same list into another one twice, and that one into a third one twice: forty such steps make
    2^40 values, without memory, until somebody goes through them or prints them.
    """
    left, waiting = limit, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple | list):
            left -= len(value)
            waiting += value if left >= 0 else ()
        elif isinstance(value, dict):
            left -= len(value)
            waiting += value.values() if left >= 0 else ()
        if left < 0:
            raise Unusable(f"has a value with more than {limit:,} values in it, the limit there")


class _Decoder:
    """The stack machine that a pickle is a program for."""

    def __init__(self, admitted: Mapping[str, Any], stored: Callable[[Any], Any] | None, steps: int):
        self.admitted = admitted
        self.stored = stored
        self.steps = steps
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}

    def take(self, name: str, argument: Any) -> None:
        """Take one step."""
        stack = self.stack
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "TUPLE":
            values = self._since_mark()
            self.stack.append(tuple(values))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("SETITEM", "SETITEMS"):
            values = self._pop(2) if name == "SETITEM" else self._since_mark()
            self._set_items(values)
        elif name in ("APPEND", "APPENDS"):
            values = self._pop(1) if name == "APPEND" else self._since_mark()
            self._target(list).extend(values)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = self._pop(2) if name == "STACK_GLOBAL" else argument.split(" ", 1)
            stack.append(self._named(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._pop(2)
            stack.append(self._call(function, arguments))
        elif name == "BINPERSID":
            stack.append(self._stored(stack.pop()))
        elif name == "BUILD":
            self._set_state(stack.pop())
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Unusable(f"holds more than tensors (the pickle step {name}), which could run code; refused")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("of an empty stack")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def _target(self, kind: type) -> Any:
        target = self.stack[-1]
        if type(target) is not kind:
            raise Unusable(f"is damaged: it adds to a {type(target).__name__} as to a {kind.__name__}")
        return target

    def _set_items(self, values: list[Any]) -> None:
        target = self._target(dict)
        if len(values) % 2:
            raise Unusable("is damaged: a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # A tuple of tuples of tuples, each twice the one before, takes forever to hash.
            if isinstance(key, tuple | list | dict | float):
                raise Unusable(f"has a {type(key).__name__} as a key")
            # Python gives numbers that differ by a multiple of 2^61 - 1 the same hash.
            if isinstance(key, int) and abs(key) >= 2**60:
                raise Unusable("has a number of more than 60 bits as a key")
            target[key] = value

    def _named(self, name: str) -> Any:
        if name not in self.admitted:
            raise Unusable(f"holds more than tensors: it names {name}, which could run code; refused. {TRUSTED}")
        return self.admitted[name]

    def _call(self, function: Any, arguments: Any) -> Any:
        if not callable(function) or not isinstance(arguments, tuple):
            raise Unusable(f"is damaged: it calls a {type(function).__name__}")
        check_size(arguments, ARGUMENTS)
        return function(arguments)

    def _stored(self, found: Any) -> Any:
        if self.stored is None:
            raise Unusable("is damaged: it refers to something outside of it")
        check_size(found, ARGUMENTS)
        return self.stored(found)

    def _set_state(self, state: Any) -> None:
        target = self.stack[-1]
        if hasattr(target, "set_state"):
            check_size(state, self.steps)
            target.set_state(state)
        elif type(target) is not dict:  # a state dict's is the version of each module, which nothing here needs
            raise Unusable(f"holds more than tensors: it sets the state of a {type(target).__name__}; refused")


def ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """What stands for ``collections.OrderedDict``; its items follow in later steps."""
    if arguments:
        raise Unusable("has an OrderedDict of a form that torch.save does not write")
    return {}
