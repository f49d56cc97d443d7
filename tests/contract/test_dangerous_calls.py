"""Nothing from outside can reach a shell, `eval`, a pickle or an unsafe YAML loader: no code calls them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from ops.home import CHECKOUT

CODE = ("contracts", "udfs", "jobs", "ops", "docker", "benchmarks")
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "subprocess.getoutput",
    "subprocess.getstatusoutput", "yaml.load", "tempfile.mktemp",
}  # fmt: skip
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "jsonpickle", "commands", "pty"}


def dangers(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call or import that could run what it is given."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names if name.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                yield node.lineno, module
            case ast.Call(func=func, keywords=keywords):
                if (name := ast.unparse(func)) in CALLS:
                    yield node.lineno, name
                for keyword in keywords:
                    said = ast.unparse(keyword.value)
                    if keyword.arg == "shell" or (keyword.arg == "allow_pickle" and said != "False"):
                        yield node.lineno, f"{keyword.arg}={said}"
                    if keyword.arg == "typ" and said not in ("'safe'", "'rt'"):
                        yield node.lineno, f"YAML(typ={said})"


def test_no_code_runs_what_it_is_given() -> None:
    found = [
        f"{path.relative_to(CHECKOUT)}:{line}: {what}"
        for folder in CODE
        for path in sorted((CHECKOUT / folder).rglob("*.py"))
        for line, what in dangers(Path(path).read_text())
    ]
    assert found == []


def test_a_dangerous_call_is_found_when_there_is_one() -> None:
    bad = "import pickle\nfrom yaml import x\neval(a)\nos.system(a)\nsubprocess.run(a, shell=True)\nYAML(typ='unsafe')\n"
    assert [line for line, _ in dangers(bad)] == [1, 2, 3, 4, 5, 6]
    assert list(dangers("re.compile(a)\nmodel.eval(x)\nsubprocess.run([a])\nYAML(typ='safe')")) == []
