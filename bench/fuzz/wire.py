"""The encoding of Protocol Buffers, for what no library would write."""

from random import Random

VARINT, FIXED64, DELIMITED, GROUP, FIXED32 = 0, 1, 2, 3, 5


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


def delimited(number: int, content: bytes) -> bytes:
    """A text, bytes, or a message."""
    return tag(number, DELIMITED) + varint(len(content)) + content


def any_field(random: Random, number: int) -> bytes:
    """A field of any type, some of them broken."""
    match random.choice((VARINT, FIXED64, DELIMITED, GROUP, 4, FIXED32, 6)):
        case 0:
            return tag(number, VARINT) + random.choice((varint(random.getrandbits(64)), b"\xff" * 11))
        case 1:
            return tag(number, FIXED64) + random.randbytes(8)
        case 2:
            content = random.randbytes(random.randint(0, 20))
            return tag(number, DELIMITED) + varint(random.choice((len(content), 1 << 31, 1 << 40))) + content
        case 5:
            return tag(number, FIXED32) + random.randbytes(4)
        case kind:
            return tag(number, kind)
