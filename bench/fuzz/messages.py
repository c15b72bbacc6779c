"""Requests from their descriptors: well-typed nonsense, and bytes that are no such message at all."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from bench.fuzz import wire

KEPT_IDS = 64
MAX_ITEMS = 3
MANY_ITEMS = 20_000
LONG_CHARS = 200_000
HUGE_BYTES = 5 << 20
"""More than a router takes."""
INTEGERS = (0, 1, 2, 3, 7, 100, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 53) + 1, (1 << 63) - 1, 1 << 63)
INTEGERS_BELOW = (-1, -(1 << 31), -(1 << 63))
FLOATS = (0.0, -0.0, 1.0, 0.5, -1.0, 2.0, 1e-40, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "a", "\0", "a\0b", " ", "\n", "é", "\U0001f600", "\u202e", "../../etc/passwd", "/", "/proc/self/mem", "-rf",
    "%s%n", "{}", '{"type": "object"}', '{"$ref": "#"}', "null", "a" * 129, "x" * 5000, "*", "127.0.0.1:1",
    "unix:/nowhere", "dns:///[", ":" * 40,
    "~nobody/x", "\U0001f600" * 1000,
)  # fmt: skip
TELLING = ("model", "name", "request_id", "model_name", "inputs")
"""Without them a message says nothing."""
INT_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
}


class Known:
    """Values that mean something to the pool, by name of the field, or of message and field."""

    def __init__(self, values: Mapping[str, Sequence[Any]]) -> None:
        self._values = values
        self.request_ids: deque[str] = deque(maxlen=KEPT_IDS)
        """Of requests that were accepted."""

    def of(self, field: FieldDescriptor) -> Sequence[Any]:
        if field.name == "request_id":
            return [*self.request_ids, "fuzz-1", "fuzz-2"]
        owner = field.containing_type.name if field.containing_type else ""
        return self._values.get(f"{owner}.{field.name}") or self._values.get(field.name, ())


class Maker:
    """The same messages for the same random numbers and the same known values."""

    def __init__(self, random: Random, known: Known) -> None:
        self._random = random
        self._known = known
        self._sane = 0.5
        """How likely a field gets a known value, and a message what it cannot do without."""

    def request(self, descriptor: Descriptor) -> bytes:
        """One message for an RPC that takes this type, or something else."""
        kinds: dict[Callable[[Descriptor], bytes], int] = {
            self._sensible: 35, self._typed: 30, self._spoilt: 15, self._bad_text: 5, self._crowded: 5,
            self._mistyped: 4, self._noise: 4, self._large: 2,
        }  # fmt: skip
        [kind] = self._random.choices(list(kinds), list(kinds.values()))
        return kind(descriptor)

    def hello(self, descriptor: Descriptor) -> bytes:
        """The first message of a stream, sound as a rule."""
        self._sane = 0.95
        field = descriptor.fields_by_name["hello"]
        return wire.delimited(field.number, self.message(_held(field), 1.0).SerializeToString())

    def message(self, descriptor: Descriptor, fill: float) -> Message:
        """A well-typed one, in which a field is set with the probability `fill`."""
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._random.random() < (self._sane if field.name in TELLING else fill):
                self._set(message, field, fill)
        for oneof in descriptor.oneofs:
            if len(oneof.fields) > 1 and not message.WhichOneof(oneof.name) and self._random.random() < self._sane:
                self._set(message, self._random.choice(oneof.fields), fill)
        return message

    # ---- kinds of requests

    def _sensible(self, descriptor: Descriptor) -> bytes:
        return self._with(0.9, descriptor, self._random.choice((0.1, 0.3, 0.6, 1.0)))

    def _typed(self, descriptor: Descriptor) -> bytes:
        return self._with(0.4, descriptor, self._random.random())

    def _spoilt(self, descriptor: Descriptor) -> bytes:
        """Some bytes of a sound message changed, cut off, or doubled."""
        data = bytearray(self._sensible(descriptor))
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randint(0, len(data))
            match self._random.randrange(4):
                case 0:
                    data[at : at + 1] = self._random.randbytes(1)
                case 1:
                    del data[at:]
                case 2:
                    data[at:at] = data[: self._random.randint(0, 40)]
                case _:
                    data[at:at] = self._random.randbytes(self._random.randint(1, 9))
        return bytes(data)

    def _bad_text(self, descriptor: Descriptor) -> bytes:
        """A text that is no UTF-8, in the message or in one that it holds."""
        bad = self._random.choice((b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"ok\x80", b"\xf8\x88\x80\x80\x80"))
        return self._sensible(descriptor) + self._around(descriptor, FieldDescriptor.TYPE_STRING, bad)

    def _crowded(self, descriptor: Descriptor) -> bytes:
        """Every member of every oneof, in any order, and fields that there are once several times."""
        parts = [self._one_field(field) for field in descriptor.fields for _ in range(self._random.randint(1, 2))]
        self._random.shuffle(parts)
        return b"".join(parts)

    def _mistyped(self, descriptor: Descriptor) -> bytes:
        """Known numbers of fields with other types than theirs, and numbers that nobody knows."""
        numbers = [*(field.number for field in descriptor.fields), 15, 999, (1 << 29) - 1]
        fields = (wire.any_field(self._random, self._random.choice(numbers)) for _ in range(self._random.randint(1, 5)))
        return self._sensible(descriptor) + b"".join(fields)

    def _noise(self, descriptor: Descriptor) -> bytes:
        return self._random.randbytes(self._random.choice((1, 2, 5, 20, 200, 5000)))

    def _large(self, descriptor: Descriptor) -> bytes:
        """One field larger than anybody needs; seldom larger than a router takes."""
        size = HUGE_BYTES if self._random.random() < 0.1 else LONG_CHARS
        lists = [field for field in descriptor.fields if field.is_repeated]
        if lists and self._random.random() < 0.5:
            one = self._one_field(self._random.choice(lists))
            return self._sensible(descriptor) + one * min(MANY_ITEMS, size // max(len(one), 1))
        text = self._random.choice((b"x", b" ", b"\xc3\xa9", b"{", b"1")) * (size // 2)
        return self._sensible(descriptor) + self._around(descriptor, FieldDescriptor.TYPE_STRING, text)

    # ---- parts of them

    def _with(self, sane: float, descriptor: Descriptor, fill: float) -> bytes:
        self._sane = sane
        return self.message(descriptor, fill).SerializeToString()

    def _one_field(self, field: FieldDescriptor) -> bytes:
        if field.containing_type is None:
            return b""
        message = GetMessageClass(field.containing_type)()
        self._set(message, field, 0.5)
        return bytes(message.SerializeToString())

    def _around(self, descriptor: Descriptor, kind: int, content: bytes) -> bytes:
        """A field of this kind, anywhere in the message, with this content; empty if the message has none."""
        fields = [f for f in descriptor.fields if f.type == kind]
        inner = [f for f in descriptor.fields if f.message_type and not f.message_type.GetOptions().map_entry]
        self._random.shuffle(inner)
        if fields and (not inner or self._random.random() < 0.6):
            return wire.delimited(self._random.choice(fields).number, content)
        for field in inner:
            if nested := self._around(_held(field), kind, content):
                return wire.delimited(field.number, nested)
        return wire.delimited(self._random.choice(fields).number, content) if fields else b""

    def _set(self, message: Message, field: FieldDescriptor, fill: float) -> None:
        where = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            self._set_map(where, field.message_type, fill)
        elif field.is_repeated:
            count = self._random.randint(0, MAX_ITEMS)
            where.extend(self._value(field, fill) for _ in range(count))
        elif field.message_type:
            where.CopyFrom(self.message(field.message_type, fill))
            where.SetInParent()
        else:
            setattr(message, field.name, self._value(field, fill))

    def _set_map(self, where: Any, entry: Descriptor, fill: float) -> None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(self._random.randint(0, MAX_ITEMS)):
            if value.message_type:
                where[self._value(key, fill)].CopyFrom(self._value(value, fill))
            else:
                where[self._value(key, fill)] = self._value(value, fill)

    def _value(self, field: FieldDescriptor, fill: float) -> Any:
        known = self._known.of(field)
        if known and self._random.random() < self._sane:
            return self._random.choice(known)
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_MESSAGE:
                return self.message(_held(field), fill)
            case FieldDescriptor.CPPTYPE_ENUM:
                known = [value.number for value in field.enum_type.values] if field.enum_type else []
                return self._random.choice([*known, 99, -1, (1 << 31) - 1])
            case FieldDescriptor.CPPTYPE_BOOL:
                return self._random.random() < 0.5
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return self._random.choice(FLOATS)
            case FieldDescriptor.CPPTYPE_STRING:
                return self._text() if field.type == FieldDescriptor.TYPE_STRING else self._random.randbytes(9)
            case _:
                return self._integer(*INT_BITS[field.cpp_type])

    def _integer(self, bits: int, signed: bool) -> int:
        high = (1 << bits - signed) - 1
        low = -high - 1 if signed else 0
        below: tuple[int, ...] = INTEGERS_BELOW if signed else ()
        value: int = self._random.choice([*INTEGERS, high, *below, self._random.randint(0, 600)])
        return min(max(value, low), high)

    def _text(self) -> str:
        if self._random.random() < 0.7:
            return self._random.choice(TEXTS)
        # Any code point but the surrogates, which no UTF-8 has.
        points = (self._random.choice((0x7F, 0xD7FF, 0x10FFFF)) for _ in range(self._random.randint(0, 30)))
        chars = (chr(self._random.randint(0, most)) for most in points)
        return "".join(char for char in chars if not 0xD800 <= ord(char) <= 0xDFFF)


def _held(field: FieldDescriptor) -> Descriptor:
    """The type of the messages in a field."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} holds no messages")
    return field.message_type
