"""A contract type for import-linter: what a module may import, as a list of what is allowed.

import-linter's own contracts name what is forbidden; for "the standard library only" that list would never be complete.
The contracts themselves stand in pyproject.toml.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from importlinter import Contract, ContractCheck, fields, output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grimp import ImportGraph


class OnlyImports(Contract):
    """Whatever the modules import, directly or through the project's modules, is standard library or allowed.

    Options:
        modules: modules or packages, with all they contain. One that does not exist breaks the contract.
        allowed: distributions' top-level names besides the standard library and the project.
        may_be_absent: a module that is still to be written does not break the contract.
        without: names (standard library or project) that these modules themselves must not import.
    """

    type_name = "only_imports"

    modules = fields.SetField(subfield=fields.StringField())
    allowed = fields.SetField(subfield=fields.StringField(), required=False, default=set())
    without = fields.SetField(subfield=fields.StringField(), required=False, default=set())
    may_be_absent = fields.BooleanField(required=False, default=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        names, allowed, without = (cast("set[str]", field) for field in (self.modules, self.allowed, self.without))
        problems: list[str] = []
        for name in sorted(names):
            if name not in graph.modules or graph.is_module_squashed(name):
                if not cast("bool", self.may_be_absent):
                    problems.append(f"{name} does not exist; take it out of pyproject.toml, or mend its name")
                continue
            for module in sorted({name} | graph.find_descendants(name)):
                problems += _foreign(graph, module, allowed | sys.stdlib_module_names)
                problems += _excluded(graph, module, without)
        return ContractCheck(kept=not problems, metadata={"problems": problems})

    def render_broken_contract(self, check: ContractCheck) -> None:
        problems: Any = check.metadata["problems"]
        for problem in problems:
            output.print_error(problem)


def _foreign(graph: ImportGraph, module: str, allowed: set[str]) -> Iterator[str]:
    for upstream in sorted(graph.find_upstream_modules(module)):
        if graph.is_module_squashed(upstream) and upstream not in allowed:
            yield " -> ".join(graph.find_shortest_chain(importer=module, imported=upstream) or (module, upstream))


def _excluded(graph: ImportGraph, module: str, without: set[str]) -> Iterator[str]:
    for imported in sorted(graph.find_modules_directly_imported_by(module)):
        if any(imported == name or imported.startswith(f"{name}.") for name in without):
            yield f"{module} -> {imported}"
