"""A contract type for import-linter: what a module may import, as a list of what is allowed.

import-linter's own contracts name what is forbidden; for "the standard library only" that list would never be complete.
The contracts themselves stand in pyproject.toml.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from importlinter import Contract, ContractCheck, fields, output

if TYPE_CHECKING:
    from grimp import ImportGraph


class OnlyImports(Contract):
    """Whatever the modules import, directly or through the project's modules, is standard library or allowed.

    Options:
        modules: modules or packages, with all they contain. One that does not exist breaks the contract.
        allowed: distributions' top-level names besides the standard library and the project.
        without: names (standard library or project) that these modules themselves must not import.
    """

    type_name = "only_imports"

    modules = fields.SetField(subfield=fields.StringField())
    allowed = fields.SetField(subfield=fields.StringField(), required=False, default=set())
    without = fields.SetField(subfield=fields.StringField(), required=False, default=set())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        own = {m for m in graph.modules if not graph.is_module_squashed(m)}
        allowed = set(sys.stdlib_module_names) | set(self.allowed)
        problems: list[str] = []
        for name in sorted(self.modules):
            if name not in own:
                problems.append(f"{name} does not exist; take it out of pyproject.toml, or mend its name")
                continue
            for module in sorted({name} | graph.find_descendants(name)):
                for upstream in sorted(graph.find_upstream_modules(module) - own):
                    if upstream not in allowed:
                        chain = graph.find_shortest_chain(importer=module, imported=upstream) or (module, upstream)
                        problems.append(" -> ".join(chain))
                for imported in sorted(graph.find_modules_directly_imported_by(module)):
                    if any(imported == w or imported.startswith(f"{w}.") for w in self.without):
                        problems.append(f"{module} -> {imported}")
        return ContractCheck(kept=not problems, metadata={"problems": problems})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for problem in check.metadata["problems"]:
            output.print_error(problem)
