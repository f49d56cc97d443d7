"""A policy as its author writes it: one YAML file -> one checked `Policy`, or every problem in it.

The YAML is read as a tree of nodes, so that each problem names the line and column it came from,
also inside a `when` written as a block. Refused beyond what YAML refuses: repeated keys, anchors
and aliases, tags, several documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from contracts.errors import PolicyProblem, PolicyRefused
from contracts.policy import Example, Policy
from udfs.policy.cel import CheckedCondition, Evaluation, bind, check
from udfs.yaml_file import too_much

MAX_NODES: Final = 20_000
# Of an integer; a longer one is a text, and refused as such.
MAX_DIGITS: Final = 40
_CORE: Final = "tag:yaml.org,2002:"
_ESCAPES: Final = {"x": 4, "u": 6, "U": 10}


def load(path: Path, variables: Mapping[str, str]) -> Policy:
    """The policy in the file `path`, checked against the declared `variables` (name -> CEL type).

    Its `when` passed the type check and the admitted subset, each example gave what it expects in
    both engines, and `variables` of the policy holds what `when` reads. Raises PolicyRefused with
    all problems of the file, in the order of its lines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = PolicyProblem("a readable UTF-8 file", str(error), file=str(path))
        raise PolicyRefused.of([problem]) from None
    return parse(text, variables, file=str(path))


def parse(text: str, variables: Mapping[str, str], *, file: str = "") -> Policy:
    """`load` for text at hand; `file` is only named in problems."""
    document = _Document(text, file)
    raw = document.read()
    policy = document.validate(raw)
    checked = document.check_when(raw.get("when"), variables)
    if policy is not None and checked is not None:
        document.check_examples(policy.examples, checked, variables)
    document.raise_problems()
    assert policy is not None and checked is not None  # else there was a problem
    return policy.model_copy(update={"variables": dict(checked.variables)})


class _Document:
    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.root: Node | None = None
        self.problems: list[PolicyProblem] = []
        self.nodes = 0
        self.seen: set[int] = set()

    def refuse(self, line: int, column: int, expected: str, got: str) -> None:
        self.problems.append(PolicyProblem(expected, got, line, column, self.file))

    def refuse_node(self, node: Node | None, expected: str, got: str) -> None:
        mark = node.start_mark if node is not None else None
        self.refuse(mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, expected, got)

    def raise_problems(self) -> None:
        if self.problems:
            ordered = sorted(dict.fromkeys(self.problems), key=lambda p: (p.line, p.column))
            raise PolicyRefused.of(ordered)

    # ---------------------------------------------------------------------------------- YAML

    def read(self) -> dict[str, Any]:
        """The document as plain values. Raises PolicyRefused when it is not YAML as admitted."""
        if expected := too_much(self.text):
            self.refuse(1, 1, expected, "more")
            self.raise_problems()
        try:
            self.root = YAML(typ="safe", pure=True).compose(self.text)
            if not isinstance(self.root, MappingNode):
                self.refuse_node(self.root, "a mapping (policy_id: ..., when: ...)", "none")
                self.raise_problems()
            raw = self._plain(self.root)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            self.refuse(line, column, "YAML", error.problem or error.context or "something else")
        except YAMLError as error:
            self.refuse(1, 1, "YAML", " ".join(str(error).split())[:300])
        except RecursionError:
            self.refuse(1, 1, "YAML with modest nesting", "deeper nesting")
        self.raise_problems()
        assert isinstance(raw, dict)
        return raw

    def _plain(self, node: Node) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.refuse_node(node, f"at most {MAX_NODES} values", "more")
            self.raise_problems()
        if id(node) in self.seen or node.anchor:
            self.refuse_node(node, "values written out", "an anchor or alias")
            return None
        self.seen.add(id(node))
        if not isinstance(node, ScalarNode) and node.tag not in (_CORE + "map", _CORE + "seq"):
            self.refuse_node(node, "a plain value", f"the tag {str(node.tag)!r}")
        match node:
            case MappingNode():
                return self._mapping(node)
            case SequenceNode():
                return [self._plain(item) for item in node.value]
            case ScalarNode():
                return self._scalar(node)
            case _:
                raise TypeError(f"expected a YAML node, came {type(node).__name__}")

    def _mapping(self, node: MappingNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode) or key.tag != _CORE + "str":
                self.refuse_node(key, "a name as key", f"{getattr(key, 'value', 'a collection')!r}")
                continue
            if key.value in found:
                self.refuse_node(key, "each key once", f"{key.value!r} again")
            found[key.value] = self._plain(value)
        return found

    def _scalar(self, node: ScalarNode) -> object:
        text = str(node.value)
        match str(node.tag).removeprefix(_CORE):
            case "str" | "timestamp":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                plain = text.replace("_", "")
                try:
                    if len(plain) > MAX_DIGITS:
                        return text
                    return int(plain, 0) if plain.lstrip("+-").startswith("0") else int(plain)
                except ValueError:
                    return text
            case "float":
                try:
                    value = float(text.replace("_", ""))
                except ValueError:
                    return text
                return value if abs(value) < float("inf") else text
            case _:
                self.refuse_node(node, "a plain value", f"the tag {str(node.tag)!r}")
                return None

    def _find(self, path: Sequence[int | str]) -> tuple[Node | None, bool]:
        """The node at `path`, or the last one on the way; and whether the whole way was gone."""
        node = self.root
        for step in path:
            inner: Node | None = None
            if isinstance(node, MappingNode):
                inner = next((v for k, v in node.value if k.value == step), None)
            elif (
                isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value)
            ):
                inner = node.value[step]
            if inner is None:
                return node, False
            node = inner
        return node, True

    # ------------------------------------------------------------------------------ the model

    def validate(self, raw: dict[str, Any]) -> Policy | None:
        if "variables" in raw:
            node, _ = self._find(["variables"])
            self.refuse_node(node, "no variables (the domain declares them)", "'variables'")
        try:
            return Policy.model_validate_json(json.dumps(raw))
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                path = list(problem["loc"])
                node, _ = self._find(path)
                name = ".".join(str(step) for step in path)
                match problem["type"]:
                    case "missing":
                        self.refuse_node(node, f"the field {name!r}", "none")
                    case "extra_forbidden":
                        self.refuse_node(self._key(path), "a field of a policy", repr(name))
                    case _:
                        wanted = problem["msg"].removeprefix("Input should be ")
                        wanted = wanted.removeprefix("Value error, ")
                        got = _shown(problem["input"])
                        self.refuse_node(node, f"{name or 'a policy'}: {wanted}", got)
            return None

    def _key(self, path: Sequence[int | str]) -> Node | None:
        holder, _ = self._find(path[:-1])
        if isinstance(holder, MappingNode):
            return next((key for key, _ in holder.value if key.value == path[-1]), holder)
        return holder

    # -------------------------------------------------------------------------- the condition

    def check_when(self, when: object, variables: Mapping[str, str]) -> CheckedCondition | None:
        if not isinstance(when, str):
            return None
        try:
            return check(when, variables)
        except PolicyRefused as refused:
            node, _ = self._find(["when"])
            places = list(_offsets(self.text, node)) if isinstance(node, ScalarNode) else []
            for problem in refused.problems:
                line, column = self._place_in_file(when, places, problem)
                self.refuse(line, column, problem.expected, problem.got)
            return None

    def _place_in_file(
        self, when: str, places: Sequence[int], problem: PolicyProblem
    ) -> tuple[int, int]:
        lines = when.split("\n")
        line = min(max(problem.line, 1), len(lines))
        offset = sum(len(text) + 1 for text in lines[: line - 1]) + max(problem.column - 1, 0)
        if not places:
            return 1, 1
        at = places[offset] if offset < len(places) else places[-1] + 1
        before = self.text[:at]
        return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1

    def check_examples(
        self,
        examples: Sequence[Example],
        checked: CheckedCondition,
        variables: Mapping[str, str],
    ) -> None:
        for index, example in enumerate(examples):
            node, _ = self._find(["examples", index])
            before = len(self.problems)
            for name in example.given:
                if name not in variables:
                    key = self._key(["examples", index, "given", name])
                    self.refuse_node(key, "a declared variable", repr(name))
            for name, wrong in bind(example.given, variables).wrong.items():
                where, _ = self._find(["examples", index, "given", name])
                self.refuse_node(where, variables[name], wrong.partition(", got ")[2])
            if len(self.problems) > before:
                continue
            try:
                evaluation = checked.evaluate(example.given)
            except PolicyRefused as refused:
                self.refuse_node(node, refused.expected, refused.message)
                continue
            expected_value: object = example.expect
            got_value = "error" if evaluation.value is None else evaluation.value
            if got_value != expected_value:
                where, _ = self._find(["examples", index, "expect"])
                self.refuse_node(where, _said(expected_value), _said_with_cause(evaluation))


def _said(value: object) -> str:
    return f"{value}".lower() if isinstance(value, bool) else str(value)


def _said_with_cause(evaluation: Evaluation) -> str:
    if evaluation.value is None:
        return f"error ({evaluation.error})"
    return _said(evaluation.value)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _offsets(text: str, node: ScalarNode) -> Iterator[int]:
    """For each character of the scalar `node`'s value, where it stands in the file.

    Exact for plain, quoted and literal (|) scalars; in folded ones (>) a space made from a line
    break stands at the break.
    """
    at = node.start_mark.index
    if node.style in ("|", ">"):
        at = text.find("\n", at) + 1
    elif node.style in ("'", '"'):
        at += 1
    for character in str(node.value):
        while at < len(text) and text[at] != character and text[at] in " \t\r\n":
            if character == " " and text[at] == "\n":
                break
            at += 1
        yield min(at, len(text))
        if at >= len(text):
            continue
        if node.style == '"' and text[at] == "\\":
            at += _ESCAPES.get(text[at + 1 : at + 2], 2)
        else:
            at += 2 if node.style == "'" and character == "'" else 1
