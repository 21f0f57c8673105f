"""Can a package be run: has it the handler, or the bootstrap? Told by reading, never by running it. Standard library only."""

from __future__ import annotations

import ast
import os

Reason = tuple[str, str]


def check(handler: str, search_path: list[str]) -> list[Reason]:
    """Why `handler` (`file.function`) can't be called: (code, sentence) pairs, none when it can.

    `search_path` has the package's folder, then those of its layers; the file of a handler in a folder must be in the package.
    """
    path, _, name = handler.rpartition(".")
    for root in search_path[:1] if "/" in path else search_path:
        for candidate in (f"{path}.py", f"{path}/__init__.py"):
            file = os.path.join(root, candidate)
            if os.path.isfile(file):
                return _look(file, candidate, name, handler)
        folder, base = os.path.split(os.path.join(root, path))
        if os.path.isdir(folder) and any(entry.startswith(base + ".") for entry in os.listdir(folder)):
            return []  # a compiled module: only loading it can tell
    there = ", ".join(sorted(os.listdir(search_path[0]))[:8]) or "nothing"
    return [
        (
            "InvalidParameterValue.Handler",
            f"handler {handler}: the package has no {path}.py; at its top there is: {there}. "
            f"Zip the files themselves, not the folder around them, or correct the handler",
        )
    ]


def check_bootstrap(root: str) -> list[Reason]:
    """Why the file `bootstrap` at the package's top can't be started as a custom runtime: (code, sentence) pairs, none when it can."""
    file = os.path.join(root, "bootstrap")
    if not os.path.isfile(file):
        there = ", ".join(sorted(os.listdir(root))[:8]) or "nothing"
        problem = (
            f"the package has no file bootstrap at its top, which CustomRuntime starts; at its top there is: {there}. "
            "Zip the files themselves, not the folder around them"
        )
    elif not os.access(file, os.X_OK):
        problem = "bootstrap is not executable: chmod 755 bootstrap, and make the zip again"
    else:
        with open(file, "rb") as program:
            problem = _program_problem(program.read(256))
    return [("InvalidParameterValue.Code", problem)] if problem else []


def _program_problem(head: bytes) -> str:
    if head.startswith(b"\x7fELF"):
        with open("/proc/self/exe", "rb") as own:
            here = own.read(20)
        if (head[4:6], head[18:20]) != (here[4:6], here[18:20]):
            return f"bootstrap is a program for another kind of processor: build it for {os.uname().machine}"
        return ""
    if not head.startswith(b"#!"):
        return "bootstrap starts neither with #! and its interpreter nor is it a Linux program"
    line = head.partition(b"\n")[0]
    if line.endswith(b"\r"):
        return "bootstrap has Windows line ends (CRLF), so its interpreter is not found: save it with LF"
    words = line[2:].split()
    interpreter = os.fsdecode(words[0]) if words else ""
    if not os.access(interpreter, os.X_OK):
        return f"bootstrap names {ascii(interpreter)[:100]} as its interpreter, which does not exist here"
    return ""


def _look(file: str, shown: str, name: str, handler: str) -> list[Reason]:
    try:
        with open(file, "rb") as source:
            tree = ast.parse(source.read(), shown)
    except SyntaxError as exc:
        line = (exc.text or "").strip()
        return [("InvalidParameterValue.Code", f"{shown}, line {exc.lineno}: {exc.msg}: {line}"[:500])]
    except (ValueError, RecursionError, MemoryError) as exc:
        return [("InvalidParameterValue.Code", f"{shown} can't be parsed: {type(exc).__name__}: {exc}"[:500])]
    names = _top_level(tree.body)
    if name in names or "*" in names:
        return []
    functions = sorted(n for n in names if not n.startswith("_"))[:8]
    has = f"it defines {', '.join(functions)}" if functions else "it defines nothing at its top level"
    return [
        ("InvalidParameterValue.Handler", f"handler {handler}: {shown} has no function {name} at its top level; {has}")
    ]


def _top_level(body: list[ast.stmt]) -> set[str]:
    """Names that running the module would bind; `*` when that can't be told."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        else:
            for field in ("body", "orelse", "finalbody", "handlers"):
                for inner in getattr(node, field, []):
                    names |= _top_level(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])
            if any(
                isinstance(n, ast.Call) and getattr(n.func, "id", "") in {"globals", "exec", "setattr"}
                for n in ast.walk(node)
            ):
                names.add("*")
    return names
