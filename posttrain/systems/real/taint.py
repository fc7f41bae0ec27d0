"""Which input reaches which sink of a Python program: a taint analysis of its syntax tree. Nothing is executed.

    name = input()
    db.execute(f"SELECT * FROM t WHERE n = '{name}'")      Finding(line=2, sink="execute", kind="sql", way=(1, 2))

Statements are followed in their order, branches are joined, loops run to a fixed point, and functions have summaries:
which parameters reach what they return, and which reach a sink inside of them. What is not known is passed on: the
result of an unknown call is tainted as its arguments and its receiver are. Numbers, lengths and comparisons are clean,
and so is a name behind a test that it consists of digits or is in a container of clean values. Attributes and items
taint the object that holds them. Text that is executed as code cannot be followed, and is a finding of its own.
Suppression comments are not looked at.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from posttrain.systems.real.flow import (
    CLEAN,
    CLEAN_METHODS,
    FIELDS,
    MUTATORS,
    NOTHING,
    QUOTES,
    REST,
    ROUNDS,
    SHELLS,
    SINK_METHODS,
    SOURCES,
    Finding,
    Flow,
    Kind,
    Origin,
    Taint,
    kind_of_sink,
    union,
)

__all__ = ["Finding", "findings"]

TEXTS_AS_CODE = frozenset({"eval", "exec"})


def findings(code: str, parameters: bool = False) -> list[Finding]:
    """What input reaches, in the order of lines.

    parameters  the parameters of every function are input too
    Raises SyntaxError for what is not Python, or is nested too deeply to be read.
    """
    try:
        return Analysis(parameters).of(ast.parse(code))
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(f"it cannot be read: {error}") from error


class Analysis(Flow):
    """Expressions and calls of one program."""

    def of(self, tree: ast.Module) -> list[Finding]:
        self.declare(tree, None)
        for _ in range(ROUNDS):
            self.changed, self.state = False, {}
            self.block(tree.body)
            if not self.changed:
                break
        return sorted(self.out.values())

    def generic_visit(self, node: ast.AST) -> Taint:
        return union([self.visit(child) or NOTHING for child in ast.iter_child_nodes(node)])

    def visit_Name(self, node: ast.Name) -> Taint:
        is_source = self.aliases.get(node.id, node.id) in SOURCES and (
            node.id in self.aliases or self.is_builtin(node.id)
        )
        return self.lookup(node.id) | ({Origin(node.lineno, node.id)} if is_source else NOTHING)

    def visit_Attribute(self, node: ast.Attribute) -> Taint:
        name = self.full_name(node)
        known = self.visit(node.value) | self.scopes[FIELDS].get(node.attr, NOTHING)
        return known | ({Origin(node.lineno, name)} if name in SOURCES else NOTHING)

    def visit_Compare(self, node: ast.Compare) -> Taint:
        self.generic_visit(node)
        return NOTHING

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Taint:
        taint = self.visit(node.operand)
        return NOTHING if isinstance(node.op, ast.Not) else taint

    def visit_IfExp(self, node: ast.IfExp) -> Taint:
        self.visit(node.test)
        state, (yes, no) = self.state, self.branches(node.test)
        self.state = yes
        taint = self.visit(node.body)
        self.state = no
        taint |= self.visit(node.orelse)
        self.state = state
        return taint

    def visit_NamedExpr(self, node: ast.NamedExpr) -> Taint:
        taint = self.visit(node.value)
        self.bind(node.target, taint)
        return taint

    def visit_Yield(self, node: ast.Yield | ast.YieldFrom) -> Taint:
        taint = self.visit_part(node.value)
        self.give_back(taint)
        return taint

    visit_YieldFrom = visit_Yield

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Taint:
        before, self.state = self.state, dict(self.state or {})
        for one in node.generators:
            self.bind(one.target, self.visit(one.iter))
            for test in one.ifs:
                self.visit(test)
                self.state, _ = self.branches(test)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        taint = union([self.visit(part) for part in parts])
        self.state = before
        return taint

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = comprehension

    def visit_Lambda(self, node: ast.Lambda) -> Taint:
        self.body_of(node, [ast.Return(node.body, lineno=node.lineno)])
        return NOTHING

    # ---- calls

    def visit_Call(self, node: ast.Call) -> Taint:
        name = self.full_name(node.func)
        last = name.rpartition(".")[2]
        given = [self.visit(one) for one in node.args]
        options = {one.arg: self.visit(one.value) for one in node.keywords}
        function = self.visit(node.func)  # of a method, the taint of its object
        everything = union([*given, *options.values()])
        if kind := self.kind_of_call(node, name):
            self.sink(node, last, kind, given, options)
            return NOTHING
        self.handed_on(node, everything | function)
        if mine := self.called_functions(node.func):
            known = union([self.apply(one, node, given, options, function) for one in mine])
            return known if isinstance(node.func, ast.Name | ast.Lambda) else known | everything | function
        if name in ("open", "io.open") and node.args and ast.unparse(node.args[0]) in ("0", "'/dev/stdin'"):
            return frozenset({Origin(node.lineno, "open")})
        if name == "print":
            for option in node.keywords:
                if option.arg == "file":
                    self.hold(option.value, everything)
        if (name in CLEAN and self.is_builtin(name)) or (name != last and last in CLEAN_METHODS):
            return NOTHING
        if name in QUOTES and self.is_builtin(name):
            return frozenset(one._replace(safe=one.safe | {QUOTES[name]}) for one in everything)
        if last in MUTATORS and isinstance(node.func, ast.Attribute):
            self.hold(node.func.value, everything)
        return everything | function

    def kind_of_call(self, node: ast.Call, name: str) -> Kind | None:
        """The kind of sink that is called; a method whose name is computed may be any."""
        if not name and isinstance(node.func, ast.Call) and self.full_name(node.func.func) == "getattr":
            return "sql"
        if name in SHELLS:
            return "shell" if runs_shell(node) else None
        return kind_of_sink(name) if self.is_builtin(name) or name.rpartition(".")[2] in SINK_METHODS else None

    def sink(
        self, node: ast.Call, last: str, kind: Kind, given: list[Taint], options: Mapping[str | None, Taint]
    ) -> None:
        owner = self.full_name(node.func.value) if isinstance(node.func, ast.Attribute) else "?"
        is_unbound = not owner or owner.rpartition(".")[2] in ("Connection", "Cursor", "__class__")
        spread = any(isinstance(one, ast.Starred) for one in node.args[:1])
        first = union(given) if is_unbound or spread else given[0] if given else union(options.values())
        if last in TEXTS_AS_CODE:
            first |= {Origin(node.lineno, last)}
        self.reach(first, node.lineno, last or "getattr", kind)

    def handed_on(self, node: ast.Call, taint: Taint) -> None:
        """Functions and sinks among the arguments may be called with all the others."""
        for one in (*node.args, *(option.value for option in node.keywords)):
            full = self.full_name(one)
            named = one.value if isinstance(one, ast.Constant) and isinstance(one.value, str) else ""
            kind = kind_of_sink(full) or SINK_METHODS.get(named)
            if kind:
                self.reach(taint, node.lineno, full.rpartition(".")[2] or named, kind)
            for function in self.called_functions(one):
                known = self.functions[function]
                passed = dict.fromkeys([*known.names, REST], taint)
                self.flow_through(function, passed, (node.lineno,))

    def apply(
        self,
        function: int,
        node: ast.Call,
        given: list[Taint],
        options: Mapping[str | None, Taint],
        receiver: Taint,
    ) -> Taint:
        """What a function of the program returns for these arguments; the sinks that they reach in it are found."""
        known = self.functions[function]
        names, passed = known.names, dict[str, Taint]()
        if known.is_method:
            passed[names[0]], names = receiver, names[1:]
        if any(isinstance(one, ast.Starred) for one in node.args) or None in options:
            passed |= dict.fromkeys([*names, REST], union([*given, *options.values()]))
            return self.flow_through(function, passed, (node.lineno,))
        for i, taint in enumerate(given):
            place = names[i] if i < len(names) else REST
            passed[place] = passed.get(place, NOTHING) | taint
        for option, taint in options.items():
            place = option if option and option in names else REST
            passed[place] = passed.get(place, NOTHING) | taint
        return self.flow_through(function, passed, (node.lineno,))

    def flow_through(self, function: int, passed: Mapping[str, Taint], way: tuple[int, ...]) -> Taint:
        known = self.functions[function]
        for (origin, line, sink, kind), inside in list(known.sinks.items()):
            self.reach(resolve(origin, function, passed), line, sink, kind, (*way, *inside))
        return union([resolve(origin, function, passed) for origin in known.returns])

    def reach(self, taint: Taint, line: int, sink: str, kind: Kind, way: tuple[int, ...] = ()) -> None:
        for origin in sorted(taint, key=lambda one: one[:2]):
            if kind in origin.safe:
                continue
            if origin.function < 0:
                lines = tuple(dict.fromkeys((origin.line, *way, line)))
                self.out.setdefault((line, sink, kind), Finding(line, sink, kind, lines))
            elif (origin, line, sink, kind) not in self.functions[origin.function].sinks:
                self.functions[origin.function].sinks[origin, line, sink, kind] = way
                self.changed = True


def resolve(origin: Origin, function: int, passed: Mapping[str, Taint]) -> Taint:
    """The origins that stand for a parameter in one call; any other origin stands for itself."""
    if origin.function != function:
        return frozenset({origin})
    return frozenset(one._replace(safe=one.safe | origin.safe) for one in passed.get(origin.name, NOTHING))


def runs_shell(node: ast.Call) -> bool:
    return any(
        one.arg in ("shell", None) and not (isinstance(one.value, ast.Constant) and not one.value.value)
        for one in node.keywords
    )
