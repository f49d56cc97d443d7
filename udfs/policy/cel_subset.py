"""The part of CEL that policies may use: a whitelist, and why everything else stays out.

Policies are checked by one engine (`cel-expr-python`, the CEL team's) and evaluated by another
(`common-expression-language`, Rust). Only what both were seen to answer alike is admitted: over
the CEL conformance cases, all pairs of operands at the limits of every type, and generated
expressions. Where the Rust engine gives an error and the other a value, it stays admitted: an
error is a hold, never a wrong answer.

Two readings of the same text: `scan` looks at its characters (fast, pure; the operator repeats it
before it lets a parser near the text), `violations` at the type-checked tree that the checker made.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from contracts.errors import PolicyProblem

# ------------------------------------------------------------------------------------ the table

# Bounds: what is within them parses on a 256 KiB stack. The slowest admitted condition that was found takes 60 ms: two
# matches of '.?😀?[^...]{100}.?x' against 4096 characters of four bytes, each with 100 states alive at each byte.
MAX_CHARACTERS: Final = 4096  # of an expression, and of each string a variable holds
MAX_TOKENS: Final = 600
MAX_BRACKETS: Final = 20  # nested; the Rust parser overflows a 512 KiB stack at 100
MAX_NODES: Final = 500
MAX_ELEMENTS: Final = 256  # of a list or map a variable holds, nested ones counted in
MAX_CONCATENATIONS: Final = 16
MAX_MACRO_DEPTH: Final = 2
MAX_COST: Final = 50_000  # steps; one step is 0.1 to 0.3 us, of a match 1.2 us at worst
MATCH_COST: Final = 200  # of each part of a regular expression: compiled at every reading, tried at every byte
SEARCH_COST: Final = 100  # of contains: 8 to 30 us over MAX_CHARACTERS of four bytes
MAX_PATTERN_CHARACTERS: Final = 200
MAX_PATTERN_PARTS: Final = 200  # letters, signs and classes, every repetition written out
MAX_REPETITION: Final = 100  # product of all {n,m} of one regular expression

VALUE_TYPES: Final = frozenset({
    "bool", "int", "uint", "double", "string", "bytes", "null_type", "timestamp", "duration", "dyn",
})  # fmt: skip
_KEY_TYPES: Final = frozenset({"string", "int", "bool"})

# Overloads, as the checker resolves them. With a `dyn` operand it names every candidate, and all
# of them must be listed here.
ADMITTED: Final = frozenset(
    {
        "equals", "not_equals", "logical_and", "logical_or", "logical_not", "conditional",
        "not_strictly_false", "to_dyn", "in_list", "in_map", "index_list", "index_map",
        "add_list", "size_list", "list_size", "size_map", "map_size", "size_bytes",
        "bytes_size", "add_string", "add_bytes", "negate_double", "contains_string",
        "starts_with_string", "ends_with_string", "matches_string", "int64_to_int64",
        "uint64_to_int64", "double_to_int64", "string_to_int64", "int64_to_uint64",
        "uint64_to_uint64", "double_to_uint64", "string_to_uint64", "int64_to_double",
        "uint64_to_double", "double_to_double", "string_to_double", "int64_to_string",
        "uint64_to_string", "string_to_string", "string_to_bytes", "bytes_to_bytes",
        "string_to_timestamp", "string_to_duration", "add_timestamp_duration",
        "subtract_timestamp_duration", "timestamp_to_year", "timestamp_to_month",
        "timestamp_to_day_of_month_1_based", "timestamp_to_day_of_month",
        "timestamp_to_day_of_week", "timestamp_to_day_of_year", "timestamp_to_hours",
        "timestamp_to_minutes", "timestamp_to_seconds", "timestamp_to_milliseconds",
        "duration_to_hours", "duration_to_minutes", "duration_to_seconds",
    }
) | {
    f"{operation}_{kind}"
    for operation in ("less", "less_equals", "greater", "greater_equals")
    for kind in (
        "int64", "uint64", "double", "string", "bytes", "bool", "timestamp", "duration",
        "int64_uint64", "int64_double", "uint64_int64", "uint64_double", "double_int64",
        "double_uint64",
    )
} | {
    f"{operation}_{kind}"
    for operation in ("add", "subtract", "multiply", "divide", "modulo")
    for kind in ("int64", "uint64", "double")
}  # fmt: skip

_RANGE = "the Rust engine does not keep to the range of a duration"
_ABSENT = "the Rust engine has no such function"
REFUSED: Final[Mapping[str, str]] = {
    "size_string": "the Rust engine counts the bytes of a string, not its characters",
    "string_size": "the Rust engine counts the bytes of a string, not its characters",
    "negate_int64": "the Rust engine wraps at the smallest int; write 0 - x",
    "double_to_string": "the Rust engine writes large and small doubles in another form",
    "bytes_to_string": "the Rust engine replaces invalid UTF-8 instead of failing",
    "timestamp_to_string": "the Rust engine writes +00:00 for Z",
    "duration_to_string": "the Rust engine writes 1h0m0s for 3600s",
    "duration_to_milliseconds": "the engines disagree on whole seconds",
    "add_duration_duration": _RANGE + "; admitted between literals",
    "subtract_duration_duration": _RANGE + "; admitted between literals",
    "subtract_timestamp_timestamp": _RANGE + "; admitted between literals 200 years apart",
    "add_duration_timestamp": _ABSENT,
    "int64_to_duration": _ABSENT,
    "duration_to_duration": _RANGE,
    "duration_to_int64": _ABSENT,
    "int64_to_timestamp": _ABSENT,
    "timestamp_to_timestamp": _ABSENT,
    "timestamp_to_int64": _ABSENT,
    "string_to_bool": _ABSENT,
    "bool_to_bool": _ABSENT,
    "bool_to_string": _ABSENT,
    "matches": "the Rust engine knows it as a method only; write text.matches('...')",
    "type": "types are not values in a policy",
}

# --------------------------------------------------------------------------------- the characters

_TOKEN: Final = re.compile(
    r"""(?P<space>[\t\n\f\r ]+)
      | (?P<comment>//[^\n]*)
      | (?P<literal>
            (?:[rR][bB]?|[bB][rR])(?:\"\"\".*?\"\"\"|'''.*?'''|\"[^"\n\r]*\"|'[^'\n\r]*')
          | [bB]?(?:\"\"\"(?:[^\\]|\\.)*?\"\"\"|'''(?:[^\\]|\\.)*?'''
                  |\"(?:[^"\\\n\r]|\\.)*\"|'(?:[^'\\\n\r]|\\.)*')
          | 0x[0-9a-fA-F]+[uU]? | \d*\.\d+(?:[eE][+-]?\d+)? | \d+[eE][+-]?\d+ | \d+[uU]?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>&&|\|\||[=!<>]=|[-+*/%<>!?:.,()\[\]{}])""",
    re.VERBOSE | re.DOTALL,
)
# The checker ends an expression at NUL.
_UNREADABLE: Final = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Token:
    """A literal (with its sign), a name or a mark, and where it starts (characters from 0)."""

    kind: str
    text: str
    offset: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What the characters alone tell."""

    tokens: tuple[Token, ...]
    problems: tuple[PolicyProblem, ...]

    def names(self) -> frozenset[str]:
        """Every name in the text: variables, fields, functions, bound variables."""
        return frozenset(token.text for token in self.tokens if token.kind == "name")

    def literals(self) -> frozenset[str]:
        """Every literal as written, numbers with the minus that stands before them."""
        found = set()
        for before, token in zip((None, *self.tokens), self.tokens, strict=False):
            if token.kind == "literal":
                signed = before is not None and before.text == "-" and token.text[-1].isalnum()
                found.add(f"-{token.text}" if signed and token.text[-1] not in "uU" else token.text)
        return frozenset(found)


def place(text: str, offset: int) -> tuple[int, int]:
    """Line and column, both from 1, of the character at `offset`."""
    before = text[: max(offset, 0)]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def scan(text: str) -> Scan:
    """Tokens of `text` and what is wrong with them: size, nesting, characters, repeated signs."""
    problems: list[PolicyProblem] = []

    def refuse(offset: int, expected: str, got: str) -> None:
        problems.append(PolicyProblem(expected, got, *place(text, offset)))

    if len(text) > MAX_CHARACTERS:
        refuse(MAX_CHARACTERS, f"at most {MAX_CHARACTERS} characters", f"{len(text)}")
        return Scan((), tuple(problems))
    if unreadable := _UNREADABLE.search(text):
        refuse(unreadable.start(), "Unicode text without NUL", repr(unreadable.group()))
        return Scan((), tuple(problems))

    tokens: list[Token] = []
    offset = depth = 0
    while offset < len(text):
        match = _TOKEN.match(text, offset)
        if match is None:
            refuse(
                offset,
                "a CEL literal, name or operator",
                repr(text[offset : offset + 12]),
            )
            return Scan(tuple(tokens), tuple(problems))
        kind = str(match.lastgroup)
        if kind not in ("space", "comment"):
            tokens.append(Token(kind, match.group(), offset))
            depth += (match.group() in "([{") - (match.group() in ")]}")
            if depth > MAX_BRACKETS:
                refuse(offset, f"at most {MAX_BRACKETS} nested brackets", "one more")
                return Scan(tuple(tokens), tuple(problems))
        offset = match.end()
    if len(tokens) > MAX_TOKENS:
        refuse(
            tokens[MAX_TOKENS].offset,
            f"at most {MAX_TOKENS} words and signs",
            f"{len(tokens)}",
        )

    for index, token in enumerate(tokens):
        before, after = (
            tokens[max(index - 1, 0)],
            tokens[min(index + 1, len(tokens) - 1)],
        )
        is_prefix = index == 0 or not _ends_operand(before)
        if token.text == "." and is_prefix:
            refuse(
                token.offset,
                "a name before the dot (the Rust engine has no .name)",
                "'.'",
            )
        # Both parsers drop pairs of signs unseen, and with them the type check of the operand.
        if token.text == "-" and is_prefix and after.text == "-":
            refuse(token.offset, "one minus", "'--'")
        if token.text == "!" and after is not token and after.text == "!":
            end = next((t for t in tokens[index:] if t.text != "!"), token)
            if end.text not in ("true", "false"):
                refuse(token.offset, "one '!'", "'!!'")
    return Scan(tuple(tokens), tuple(problems))


def _ends_operand(token: Token) -> bool:
    if token.kind == "mark":
        return token.text in ")]}"
    return token.text != "in"


# ------------------------------------------------------------------------------------- the tree


@dataclass(slots=True)
class Node:
    """A node of the type-checked tree. `type` is a CEL type name; `offset` counts characters."""

    kind: str = "unset"  # const ident select call list map message loop
    name: str = ""
    value: object = None
    children: tuple[Node, ...] = ()
    type: str = "dyn"
    overloads: tuple[str, ...] = ()
    offset: int = 0


@dataclass(slots=True)
class Loop(Node):
    """An expanded macro (all, exists, exists_one, map, filter)."""

    variables: tuple[str, ...] = ()
    accumulator: str = ""


Fields = dict[int, list[int | bytes]]


def _fields(data: bytes) -> Fields:
    """The fields of one protobuf message: number -> values as they stand on the wire."""
    found: Fields = {}
    index = 0

    def varint() -> int:
        nonlocal index
        result = shift = 0
        while True:
            byte = data[index]
            index += 1
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    while index < len(data):
        key = varint()
        value: int | bytes
        match key & 7:
            case 0:
                value = varint()
            case 1 | 5 as width:
                size = 8 if width == 1 else 4
                value, index = data[index : index + size], index + size
            case 2:
                size = varint()
                value, index = data[index : index + size], index + size
            case _:
                raise ValueError(f"expected a protobuf wire type, came {key & 7}")
        found.setdefault(key >> 3, []).append(value)
    return found


def _bytes(fields: Fields, number: int) -> bytes:
    value = fields.get(number, [b""])[-1]
    return value if isinstance(value, bytes) else b""


def _text(fields: Fields, number: int) -> str:
    return _bytes(fields, number).decode("utf-8", "replace")


def _int(fields: Fields, number: int) -> int:
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        return 0
    return value - 2**64 if value >= 2**63 else value


def _messages(fields: Fields, number: int) -> Iterator[Fields]:
    for value in fields.get(number, []):
        if isinstance(value, bytes):
            yield _fields(value)


_PRIMITIVES: Final = ("", "bool", "int", "uint", "double", "string", "bytes")
_WELL_KNOWN: Final = ("", "any", "timestamp", "duration")


def _type_name(fields: Fields) -> str:
    """The name of a `cel.expr.Type`."""
    (number,) = fields or (1,)
    match number:
        case 1:
            return "dyn"
        case 2:
            return "null_type"
        case 3:
            return _PRIMITIVES[_int(fields, 3)]
        case 5:
            return _WELL_KNOWN[_int(fields, 5)]
        case 6:
            return f"list({_type_name(_fields(_bytes(_fields(_bytes(fields, 6)), 1)))})"
        case 7:
            inner = _fields(_bytes(fields, 7))
            key, value = (_type_name(_fields(_bytes(inner, part))) for part in (1, 2))
            return f"map({key}, {value})"
        case 10:
            return "dyn"  # an unbound type parameter: the element of an empty list
        case _:
            return {4: "wrapper", 8: "function", 9: "message", 11: "type"}.get(number, "other")


@dataclass(slots=True)
class _Decoder:
    """`cel.expr.CheckedExpr` (google/cel-spec, proto/cel/expr/checked.proto) -> Node."""

    types: dict[int, str] = field(default_factory=dict)
    overloads: dict[int, tuple[str, ...]] = field(default_factory=dict)
    constants: set[int] = field(default_factory=set)
    offsets: dict[int, int] = field(default_factory=dict)

    def decode(self, serialized: bytes) -> Node:
        checked = _fields(_bytes(_fields(serialized), 2))  # the value inside a protobuf Any
        for entry in _messages(checked, 2):
            reference = _fields(_bytes(entry, 2))
            self.overloads[_int(entry, 1)] = tuple(
                value.decode() for value in reference.get(3, []) if isinstance(value, bytes)
            )
            if 4 in reference:
                self.constants.add(_int(entry, 1))
        for entry in _messages(checked, 3):
            self.types[_int(entry, 1)] = _type_name(_fields(_bytes(entry, 2)))
        for entry in _messages(_fields(_bytes(checked, 5)), 4):
            self.offsets[_int(entry, 1)] = _int(entry, 2)
        return self._node(_fields(_bytes(checked, 4)))

    def _child(self, fields: Fields, number: int) -> Node:
        return self._node(_fields(_bytes(fields, number)))

    def _node(self, fields: Fields) -> Node:
        identity = _int(fields, 2)
        node = self._shape(fields)
        node.type = self.types.get(identity, "dyn")
        node.overloads = self.overloads.get(identity, ())
        node.offset = self.offsets.get(identity, 0)
        if identity in self.constants:
            node.kind = "message"  # a protobuf enum, folded into a number
        return node

    def _shape(self, fields: Fields) -> Node:
        number = next((n for n in range(3, 10) if n in fields), 0)
        inner = _fields(_bytes(fields, number)) if number else {}
        match number:
            case 3:
                return Node("const", value=_constant(inner))
            case 4:
                return Node("ident", _text(inner, 1))
            case 5:
                return Node("select", _text(inner, 2), children=(self._child(inner, 1),))
            case 6:
                arguments = [self._node(argument) for argument in _messages(inner, 3)]
                target = [self._child(inner, 1)] if 1 in inner else []
                return Node("call", _text(inner, 2), children=(*target, *arguments))
            case 7:
                kind = "message" if 2 in inner else "list"  # optional elements
                return Node(kind, children=tuple(self._node(e) for e in _messages(inner, 1)))
            case 8:
                return self._map(inner)
            case 9:
                names = tuple(name for name in (_text(inner, 1), _text(inner, 8)) if name)
                parts = tuple(self._child(inner, part) for part in (2, 4, 5, 6, 7))
                return Loop("loop", children=parts, variables=names, accumulator=_text(inner, 3))
            case _:
                return Node("message")

    def _map(self, inner: Fields) -> Node:
        entries = list(_messages(inner, 2))
        if 1 in inner or any(2 in entry or 5 in entry for entry in entries):
            return Node("message", _text(inner, 1))
        parts = [self._child(entry, part) for entry in entries for part in (3, 4)]
        return Node("map", children=tuple(parts))


def _constant(fields: Fields) -> object:
    number = next(iter(fields), 1)
    match number:
        case 2:
            return bool(_int(fields, 2))
        case 3:
            return _int(fields, 3)
        case 4:
            return _int(fields, 4) % 2**64
        case 5:
            return struct.unpack("<d", _bytes(fields, 5))[0]
        case 6:
            return _text(fields, 6)
        case 7:
            return _bytes(fields, 7)
        case _:
            return None


def decode(serialized: bytes) -> Node:
    """The tree inside what `cel_expr_python`'s `Expression.serialize()` gives."""
    return _Decoder().decode(serialized)


# ------------------------------------------------------------------------------ the tree's rules

_TIMESTAMP: Final = re.compile(
    r"(?!0000)\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    r"T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?Z\Z",
    re.ASCII,
)
_DURATION: Final = re.compile(r"-?(\d{1,9}(\.\d{1,9})?s|\d{1,6}[hm]|\d{1,9}(ms|us|ns))\Z", re.ASCII)
# Characters that stand for themselves in both dialects of regular expressions.
_PATTERN: Final = re.compile(
    r"""[^\\.*+?()\[\]{}|^$\x00-\x1f] | \\[.*+?()\[\]{}|^$\\\-/] | [.^$|)]
      | \((?:\?:)?
      | \[\^?(?:(?:[^\\\[\]&~\-^\x00-\x1f]|\\[\].\\\-\[^])(?:-[^\\\[\]&~\-^\x00-\x1f])?)+\]
      | (?<=[^*+?({|^])(?:[*+?]|\{(?P<low>\d{1,3})(?P<comma>,)?(?P<high>\d{1,3})?\})(?![*+{])""",
    re.VERBOSE,
)


def pattern_parts(pattern: str) -> int:
    """How many letters, signs and classes an admitted `pattern` has once every repetition is written out."""
    groups = [[0]]  # the parts of each item, by open group
    for match in _PATTERN.finditer(pattern):
        part = match.group()
        if part.startswith("("):
            groups.append([1])
        elif part == ")" and len(groups) > 1:
            group = groups.pop()
            groups[-1].append(sum(group))
        elif match["low"]:
            groups[-1][-1] *= max(int(match["high"] or match["low"]), 1)
        else:
            groups[-1].append(1 + len(part) // 16)  # a long class takes many states
    return sum(map(sum, groups))


def pattern_problem(pattern: str) -> str:
    """Why the engines may not agree on this regular expression; empty when they do.

    Left out: \\d \\w \\s \\b and (?i) (Unicode in one engine, ASCII in the other), set operations
    and classes within classes, repeated repetition, and what is too long once it is written out.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return f"more than {MAX_PATTERN_CHARACTERS} characters"
    offset, repetition = 0, 1
    while offset < len(pattern):
        match = _PATTERN.match(pattern, offset)
        if match is None:
            return f"{pattern[offset : offset + 4]!r} at {offset + 1}"
        if match["low"]:
            repetition *= max(int(match["high"] or match["low"]), 1)
        offset = match.end()
    if repetition > MAX_REPETITION:
        return f"{repetition} repetitions in all"
    if (parts := pattern_parts(pattern)) > MAX_PATTERN_PARTS:
        return f"{parts} letters, signs and classes with every repetition written out (at most {MAX_PATTERN_PARTS})"
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return ""


@dataclass(slots=True)
class _Rules:
    text: str
    variables: Mapping[str, str]
    problems: list[PolicyProblem] = field(default_factory=list)
    nodes: int = 0
    concatenations: int = 0

    def refuse(self, node: Node, expected: str, got: str) -> None:
        self.problems.append(PolicyProblem(expected, got, *place(self.text, node.offset)))

    def visit(self, node: Node, bound: tuple[str, ...], depth: int) -> int:
        """Checks `node` and all below; gives the most steps one evaluation of it can take."""
        self.nodes += 1
        if not _is_admitted_type(node.type, VALUE_TYPES):
            self.refuse(node, "bool, int, uint, double, string, list or map", node.type)
            return 1
        match node.kind:
            case "ident":
                if node.name not in self.variables and node.name not in bound:
                    self.refuse(node, "a declared variable", repr(node.name))
            case "message":
                self.refuse(node, "plain values (no messages, enums or optionals)", "a message")
            case "map":
                self._map_keys(node)
            case "select":
                if not _is_keyed_by_string(node.children[0].type):
                    self.refuse(node, "a map with string keys", node.children[0].type)
            case "call":
                self._call(node, depth)
            case _ if isinstance(node, Loop):
                return self._loop(node, bound, depth)
        steps = sum(self.visit(child, bound, depth) for child in node.children)
        if "matches_string" in node.overloads:
            return steps + MATCH_COST * (1 + pattern_parts(str(node.children[-1].value)))
        if "contains_string" in node.overloads:
            return steps + SEARCH_COST
        is_wide = any(_is_container(child.type) for child in node.children)
        return steps + (sum(map(_length, node.children)) if is_wide else 1)

    def _map_keys(self, node: Node) -> None:
        keys = node.children[::2]
        for key in keys:
            if key.kind != "const" or key.type not in _KEY_TYPES:
                expected = "a literal string, int or bool as key (other keys differ by engine)"
                self.refuse(key, expected, key.type if key.kind == "const" else "one made later")
        if len({(key.type, key.value) for key in keys}) < len(keys):
            self.refuse(node, "each map key once", "a repeated key")

    def _call(self, node: Node, depth: int) -> None:
        for overload in node.overloads or (node.name,):
            if overload not in ADMITTED and not _is_short_span(node):
                reason = REFUSED.get(overload, "not among the functions policies may use")
                types = ", ".join(child.type for child in node.children)
                self.refuse(node, f"an admitted operation ({reason})", f"{node.name}({types})")
                return
        if node.name in ("_[_]", "@in"):
            key, holder = node.children if node.name == "@in" else node.children[::-1]
            self._key(node, key, holder)
        elif node.overloads == ("matches_string",):
            pattern = node.children[1]
            if not isinstance(pattern.value, str):
                self.refuse(pattern, "a literal regular expression", "one made at run time")
            elif problem := pattern_problem(pattern.value):
                self.refuse(pattern, "a regular expression both engines read alike", problem)
        elif node.overloads in (("string_to_timestamp",), ("string_to_duration",)):
            literal, is_instant = node.children[0], node.name == "timestamp"
            form = _TIMESTAMP if is_instant else _DURATION
            if not isinstance(literal.value, str) or not form.match(literal.value):
                expected = "'YYYY-MM-DDThh:mm:ssZ'" if is_instant else "'90s'"
                self.refuse(node, f"a literal like {expected}", repr(literal.value))
        elif not {"add_string", "add_bytes", "add_list"}.isdisjoint(node.overloads):
            self.concatenations += 1
            if depth:
                self.refuse(node, "no joining of strings or lists inside a macro", "'+'")
            elif self.concatenations > MAX_CONCATENATIONS:
                self.refuse(node, f"at most {MAX_CONCATENATIONS} joined parts", "one more")

    def _key(self, node: Node, key: Node, holder: Node) -> None:
        """1, 1u and 1.0 are one map key to the specification, three to the Rust engine."""
        if not holder.type.startswith("list("):
            wanted = _key_type(holder.type)
            admitted = _KEY_TYPES if wanted == "dyn" else {wanted}
            if key.type not in admitted:
                self.refuse(key, f"a key of type {' or '.join(sorted(admitted))}", key.type)

    def _loop(self, node: Loop, bound: tuple[str, ...], depth: int) -> int:
        span, start, condition, step, result = node.children
        is_fold = start.type in ("bool", "int")  # all, exists, exists_one
        if not span.type.startswith("list(") and not (is_fold and _cannot_fail(node)):
            # Rust goes through a map in no fixed order: the order of the elements of map() and
            # filter() would differ from run to run, and so would whether an error comes first.
            expected = "a list (of a map: all, exists, exists_one with a test that cannot fail)"
            self.refuse(node, expected, span.type)
        if len(node.variables) != 1:
            self.refuse(node, "a macro with one variable", f"{len(node.variables)}")
        if depth == MAX_MACRO_DEPTH:
            self.refuse(node, f"at most {MAX_MACRO_DEPTH} macros inside each other", "one more")
            return 1
        inside = (*bound, *node.variables, node.accumulator)
        length = _length(span)
        once = self.visit(condition, inside, depth + 1) + self._step(node, step, inside, depth + 1)
        around = self.visit(span, bound, depth) + self.visit(start, bound, depth)
        return around + self.visit(result, inside, depth) + length * (once + length // 4)

    def _step(self, loop: Loop, step: Node, bound: tuple[str, ...], depth: int) -> int:
        """A map's or filter's step joins the accumulator and a list of one: the macro's own `+`."""
        is_own = step.overloads == ("add_list",) and step.children[0].name == loop.accumulator
        if is_own:
            return sum(self.visit(child, bound, depth) for child in step.children)
        if step.overloads == ("conditional",) and step.offset == loop.offset:
            condition, then, other = step.children
            return self.visit(condition, bound, depth) + sum(
                self._step(loop, branch, bound, depth) for branch in (then, other)
            )
        return self.visit(step, bound, depth)


def _is_admitted_type(name: str, admitted: frozenset[str]) -> bool:
    return all(part in admitted | {"list", "map"} for part in re.findall(r"[a-z_0-9]+", name))


def _is_container(name: str) -> bool:
    return name == "dyn" or name.startswith(("list(", "map("))


def _is_keyed_by_string(name: str) -> bool:
    return name == "dyn" or name.startswith(("map(string", "map(dyn"))


def _key_type(name: str) -> str:
    found = re.match(r"map\(([a-z_]+),", name)
    return found[1] if found else "dyn"


def _is_short_span(node: Node) -> bool:
    """Duration arithmetic between literals, too short to pass the range of a duration."""
    if node.name not in ("_+_", "_-_") or len(node.overloads) != 1:
        return False
    texts = [str(c.children[0].value) for c in node.children if c.name in ("timestamp", "duration")]
    if len(texts) < 2:
        return False
    if node.overloads[0] == "subtract_timestamp_timestamp":
        return (
            all(map(_TIMESTAMP.match, texts)) and abs(int(texts[0][:4]) - int(texts[1][:4])) < 200
        )
    return node.overloads[0] in ("add_duration_duration", "subtract_duration_duration")


_TOTAL: Final = frozenset(
    {
        "equals",
        "not_equals",
        "logical_and",
        "logical_or",
        "logical_not",
        "conditional",
        "not_strictly_false",
        "add_int64",
        "contains_string",
        "starts_with_string",
        "ends_with_string",
        "less_string",
        "greater_string",
        "less_equals_string",
        "greater_equals_string",
        "less_int64",
        "greater_int64",
        "less_equals_int64",
        "greater_equals_int64",
    }
)  # fmt: skip


def _cannot_fail(loop: Loop) -> bool:
    """Whether a macro's test reads nothing but its own variable and holds no failing operation."""
    own = (*loop.variables, loop.accumulator)
    is_counting = loop.children[1].type == "int"

    def is_total(node: Node) -> bool:
        match node.kind:
            case "ident":
                known = node.name in own and node.type in _KEY_TYPES
            case "call":
                known = _TOTAL.issuperset(node.overloads)
                if "add_int64" in node.overloads:  # the counter of exists_one
                    known = is_counting and node.children[0].name == loop.accumulator
            case _:
                known = node.kind == "const"
        return known and all(map(is_total, node.children))

    return all(map(is_total, loop.children[2:4]))


def _length(node: Node) -> int:
    """The most elements the list or map `node` gives can have; 1 for a plain value."""
    if not _is_container(node.type):
        return 1
    match node.kind:
        case "list" | "map":
            return max(len(node.children), 1)
        case "call" if node.name == "_+_":
            return sum(map(_length, node.children))
        case "call" if node.name == "_?_:_":
            return max(map(_length, node.children[1:]))
        case "loop":
            return _length(node.children[0])
        case _:
            return MAX_ELEMENTS


def violations(
    text: str, tree: Node, variables: Mapping[str, str]
) -> tuple[tuple[PolicyProblem, ...], int]:
    """What in the type-checked `tree` of `text` is not admitted, and its cost in steps."""
    rules = _Rules(text, variables)
    if tree.type not in ("bool", "dyn"):
        rules.refuse(Node(), "a condition (bool)", tree.type)
    cost = rules.visit(tree, (), 0)
    cost *= 1 + rules.concatenations  # what is read is as much longer than a variable may be
    if rules.nodes > MAX_NODES:
        rules.refuse(tree, f"at most {MAX_NODES} operations and values", f"{rules.nodes}")
    if cost > MAX_COST:
        rules.refuse(tree, f"at most {MAX_COST} steps in the worst case", f"{cost}")
    return tuple(sorted(dict.fromkeys(rules.problems), key=lambda p: (p.line, p.column))), cost
