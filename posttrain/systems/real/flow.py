"""The statements of a program in their order, for the taint analysis: names, scopes, branches, loops, functions."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

Kind = Literal["sql", "shell", "code", "data"]
SOURCES = frozenset([
    "input", "sys.argv", "sys.stdin", "sys.__stdin__", "os.environ", "os.getenv", "os.read", "fileinput.input",
    "getpass.getpass", "request", "flask.request",
])  # fmt: skip
SINK_METHODS: Mapping[str, Kind] = dict.fromkeys(["execute", "executemany", "executescript"], "sql")  # of any object
SINKS: Mapping[str, Kind] = {
    **dict.fromkeys(["eval", "exec", "__import__", "importlib.import_module"], "code"),
    **dict.fromkeys(["os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"], "shell"),
    **dict.fromkeys(["pickle.loads", "pickle.load", "marshal.loads", "dill.loads", "yaml.unsafe_load"], "data"),
}
SHELLS = frozenset(f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen"))
CLEAN = frozenset([
    "int", "float", "bool", "complex", "len", "ord", "hash", "id", "isinstance", "issubclass", "callable", "range",
    "print", "uuid.UUID", "decimal.Decimal", "fractions.Fraction", "datetime.date.fromisoformat",
    "datetime.datetime.fromisoformat",
])  # fmt: skip
CLEAN_METHODS = frozenset([
    "count", "find", "index", "startswith", "endswith", "isalpha", "isalnum", "isdigit", "isdecimal", "isnumeric",
])  # fmt: skip
DIGITS = frozenset({"isdigit", "isdecimal", "isnumeric"})
QUOTES: Mapping[str, Kind] = {"shlex.quote": "shell"}  # its result is safe in one kind of sink alone
MUTATORS = frozenset([
    "append", "extend", "insert", "add", "update", "appendleft", "setdefault", "write", "writelines", "put",
])  # fmt: skip
ROUNDS = 100  # most passes over a loop or a module; each only adds to what is known, and a few are enough


class Origin(NamedTuple):
    """Where a value came from: a line that reads input, or a parameter of a function."""

    line: int
    name: str
    function: int = -1  # of a parameter: the id of its function's node
    safe: frozenset[Kind] = frozenset()  # kinds of sinks for which it was quoted


class Finding(NamedTuple):
    """Input that reaches a sink, with the lines of the way there, from the source on."""

    line: int
    sink: str
    kind: Kind
    way: tuple[int, ...]


Taint: TypeAlias = frozenset[Origin]
State: TypeAlias = "dict[str, Taint] | None"  # of each name; None where no execution comes by
NOTHING: Taint = frozenset()
REST = "*"
MODULE, FIELDS = -1, -2  # scopes besides those of functions: the module's, and attributes by name, of whatever object


@dataclass(slots=True)
class Function:
    """What is known of a function so far."""

    names: list[str]
    rest: list[str]  # the names of *arguments and **options, together the parameter REST
    is_method: bool
    returns: Taint = NOTHING
    sinks: dict[tuple[Origin, int, str, Kind], tuple[int, ...]] = field(default_factory=dict)  # with the way inside


class Flow(ast.NodeVisitor):
    """Visiting a statement changes `state`, visiting an expression (`taint.Analysis`) returns its taint."""

    def __init__(self, parameters: bool):
        self.parameters = parameters
        self.functions: dict[int, Function] = {}
        self.bound: dict[str, set[int]] = {}  # functions, methods and lambdas by the names that they have been given
        self.aliases: dict[str, str] = {}  # the full names of what was imported, and of sinks and sources, by name
        self.rebound: set[str] = set()  # names that are assigned or are parameters: no builtins any more
        self.shared: set[str] = set()  # names that are declared global or nonlocal
        self.scopes: dict[int, dict[str, Taint]] = {MODULE: {}, FIELDS: {}}  # all that was ever assigned to a name
        self.chain: list[int] = [MODULE]  # from the module to the function that is visited
        self.state: State = {}
        self.breaks: list[list[State]] = []
        self.out: dict[tuple[int, str, Kind], Finding] = {}
        self.changed = False

    def declare(self, parent: ast.AST, owner: str | None) -> None:
        """Learn the names of functions, imports and variables below a node; `owner` is the class that it is."""
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                spec, name = node.args, getattr(node, "name", "")
                names = [one.arg for one in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
                rest = [one.arg for one in (spec.vararg, spec.kwarg) if one]
                is_method = owner is not None and names[:1] in (["self"], ["cls"])
                self.functions[id(node)] = Function(names, rest, is_method)
                self.rebound |= {*names, *rest, name}
                self.bound.setdefault(owner if owner and name == "__init__" else name, set()).add(id(node))
            elif isinstance(node, ast.Global | ast.Nonlocal):
                self.shared |= set(node.names)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.rebound.add(node.id)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
                for one in node.names:
                    self.aliases[one.asname or one.name] = (prefix + one.name).removeprefix("builtins.")
            self.declare(node, node.name if isinstance(node, ast.ClassDef) else None)

    # ---- names

    def lookup(self, name: str) -> Taint:
        own = self.state.get(name) if self.state is not None else None
        if own is not None and name not in self.shared:
            return own
        places = self.chain if name in self.shared else self.chain[:-1]
        return union([own or NOTHING, *[self.scopes.get(one, {}).get(name, NOTHING) for one in places]])

    def assign(self, name: str, taint: Taint) -> None:
        if self.state is not None:
            self.state[name] = taint
        for place in self.chain if name in self.shared else self.chain[-1:]:
            self.remember(place, name, taint)

    def remember(self, scope: int, name: str, taint: Taint) -> None:
        names = self.scopes.setdefault(scope, {})
        if not taint <= names.get(name, NOTHING):
            names[name] = names.get(name, NOTHING) | taint
            self.changed = True

    def bind(self, target: ast.AST | None, taint: Taint) -> None:
        match target:
            case ast.Name(id=name):
                self.assign(name, taint)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for one in parts:
                    self.bind(one, taint)
            case ast.Starred(value=inner):
                self.bind(inner, taint)
            case ast.Attribute() | ast.Subscript():
                self.hold(target, taint)

    def hold(self, place: ast.AST, taint: Taint) -> None:
        """The objects in which this place lies hold this too from now on."""
        while isinstance(place, ast.Attribute | ast.Subscript):
            if isinstance(place, ast.Attribute):
                self.remember(FIELDS, place.attr, taint)
            place = place.value
        if isinstance(place, ast.Name) and taint:
            self.assign(place.id, taint | self.lookup(place.id))

    def full_name(self, node: ast.AST | None) -> str:
        """The dotted name of a thing, imports and aliases resolved, ? for an unnamed object; empty for the rest."""
        match node:
            case ast.Name(id=name):
                return self.aliases.get(name, name)
            case ast.Attribute(value=owner, attr=name):
                return f"{self.full_name(owner) or '?'}.{name}".removeprefix("builtins.")
            case ast.Call(func=function, args=[owner, ast.Constant(value=str(name)), *_]):
                if self.full_name(function) == "getattr":
                    return f"{self.full_name(owner) or '?'}.{name}".removeprefix("builtins.")
        return ""

    def called_functions(self, node: ast.AST | None) -> set[int]:
        """The functions of the program that this may be."""
        if isinstance(node, ast.Lambda):
            return {id(node)}
        if isinstance(node, ast.Attribute):
            return {one for one in self.bound.get(node.attr, ()) if self.functions[one].is_method}
        return self.bound.get(node.id, set()) if isinstance(node, ast.Name) else set()

    def is_builtin(self, name: str) -> bool:
        return name.partition(".")[0] not in self.rebound

    # ---- statements

    def visit_part(self, node: ast.AST | None) -> Taint:
        return NOTHING if node is None else self.visit(node)

    def block(self, body: Iterable[ast.stmt]) -> None:
        for node in body:
            if self.state is not None:
                self.visit(node)

    def from_state(self, state: State, body: Iterable[ast.stmt]) -> State:
        """The state after these statements, begun in a copy of the state."""
        before, self.state = self.state, None if state is None else dict(state)
        self.block(body)
        after, self.state = self.state, before
        return after

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for one in (*node.args.defaults, *node.args.kw_defaults, *node.decorator_list):
            self.visit_part(one)
        self.body_of(node, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def body_of(self, node: Any, body: Sequence[ast.stmt]) -> None:
        known, held, state = self.functions[id(node)], self.breaks, self.state
        self.chain.append(id(node))
        self.breaks, self.state = [], {}
        for name in (*known.names, *known.rest):
            parameter = Origin(node.lineno, REST if name in known.rest else name, id(node))
            is_input = self.parameters and name not in ("self", "cls")
            self.assign(name, frozenset({parameter, Origin(node.lineno, name)} if is_input else {parameter}))
        self.block(body)
        self.chain.pop()
        self.breaks, self.state = held, state

    def give_back(self, taint: Taint) -> None:
        known = self.functions.get(self.chain[-1])
        if known and not taint <= known.returns:
            known.returns |= taint
            self.changed = True

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.block(node.body)

    def visit_Assign(self, node: ast.Assign | ast.AnnAssign) -> None:
        targets, value = node.targets if isinstance(node, ast.Assign) else [node.target], node.value
        if value is None:
            return
        taint = self.visit(value)
        for target in targets:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
                taints = [self.visit(one) for one in value.elts]
                for one, part in zip(target.elts, taints, strict=True):
                    self.bind(one, part)
                continue
            self.bind(target, taint)
            if isinstance(target, ast.Name):
                self.alias(target.id, value)

    visit_AnnAssign = visit_Assign

    def alias(self, name: str, value: ast.expr) -> None:
        """A function, a sink or a source gets another name."""
        if more := self.called_functions(value) - self.bound.get(name, set()):
            self.bound[name] = self.bound.get(name, set()) | more
            self.changed = True
        full = self.full_name(value)
        if (kind_of_sink(full) or full in SOURCES) and self.aliases.get(name) != full and name not in self.aliases:
            self.aliases[name] = full
            self.changed = True

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.bind(node.target, self.visit(node.value) | self.visit(node.target))

    def visit_Return(self, node: ast.Return) -> None:
        self.give_back(self.visit_part(node.value))
        self.state = None

    def visit_Raise(self, node: ast.Raise) -> None:
        self.visit_part(node.exc)
        self.state = None

    def visit_Break(self, node: ast.Break | ast.Continue) -> None:
        if self.breaks and self.state is not None:
            self.breaks[-1].append(dict(self.state))
        self.state = None

    visit_Continue = visit_Break

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        yes, no = self.branches(node.test)
        self.state = join(self.from_state(yes, node.body), self.from_state(no, node.orelse))

    def visit_While(self, node: ast.While) -> None:
        endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        no, broken = self.state, list[State]()
        for _ in range(ROUNDS):
            before = dict(self.state or {})
            self.visit(node.test)
            yes, no = self.branches(node.test)
            broken = self.one_round(yes, node.body)
            if self.state == before:
                break
        left = self.from_state(None if endless else no, node.orelse)
        self.state = join(left, *broken)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        broken = list[State]()
        for _ in range(ROUNDS):
            before = dict(self.state or {})
            items = self.visit(node.iter)
            held, self.state = self.state, dict(before)
            self.bind(node.target, items)
            inside, self.state = self.state, held
            broken = self.one_round(inside, node.body)
            if self.state == before:
                break
        self.state = join(self.from_state(self.state, node.orelse), *broken)

    visit_AsyncFor = visit_For

    def one_round(self, inside: State, body: Iterable[ast.stmt]) -> list[State]:
        """Visit a loop's body, and join its end with what is known before it; the states at break and continue."""
        self.breaks.append([])
        after = self.from_state(inside, body)
        broken = self.breaks.pop()
        self.state = join(self.state, after, *broken)
        return broken

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        body = self.from_state(self.state, node.body)
        thrown = join(self.state, body)  # an error may come before, within or behind the body
        assigned = self.scopes.get(self.chain[-1], {})
        if thrown is not None:
            thrown = {one: thrown.get(one, NOTHING) | assigned.get(one, NOTHING) for one in {*thrown, *assigned}}
        ends = [self.from_state(thrown, one.body) for one in node.handlers]
        after = join(self.from_state(body, node.orelse), *ends)
        ended = self.from_state(thrown if after is None else after, node.finalbody)
        self.state = None if after is None else ended

    def visit_TryStar(self, node: ast.TryStar) -> None:
        self.visit_Try(node)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.bind(item.optional_vars, self.visit(item.context_expr))
        before = self.state
        self.block(node.body)
        if self.state is None and before is not None:  # what is managed may swallow what was raised
            assigned = self.scopes.get(self.chain[-1], {})
            self.state = {one: before.get(one, NOTHING) | assigned.get(one, NOTHING) for one in {*before, *assigned}}

    visit_AsyncWith = visit_With

    def visit_Match(self, node: ast.Match) -> None:
        subject, ends = self.visit(node.subject), [self.state]
        for case in node.cases:
            for part in ast.walk(case.pattern):
                for name in filter(None, (getattr(part, "name", None), getattr(part, "rest", None))):
                    self.assign(name, subject)
            ends.append(self.from_state(self.state, case.body))
        self.state = join(*ends)

    def branches(self, test: ast.expr) -> tuple[State, State]:
        """The states where a test holds and where it does not: a name that it validates is clean there."""
        state = self.state or {}
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yes, no = self.branches(test.operand)
            return no, yes
        match test:
            case ast.Compare(left=ast.Name(id=name), ops=[ast.In() | ast.NotIn() as op], comparators=[held]):
                if isinstance(held, ast.Tuple | ast.List | ast.Set | ast.Dict) and not self.visit(held):
                    clean: State = {**state, name: NOTHING}
                    return (clean, dict(state)) if isinstance(op, ast.In) else (dict(state), clean)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if attr in DIGITS:
                return {**state, name: NOTHING}, dict(state)
        return dict(state), dict(state)


def union(taints: Iterable[Taint]) -> Taint:
    return NOTHING.union(*taints)


def join(*states: State) -> State:
    """What holds where any of these states may; None where none is reached."""
    reached = [one for one in states if one is not None]
    names = {name for one in reached for name in one}
    return {name: union(one.get(name, NOTHING) for one in reached) for name in names} if reached else None


def kind_of_sink(name: str) -> Kind | None:
    owner, _, last = name.rpartition(".")
    return SINKS.get(name) or (SINK_METHODS.get(last) if owner else None)
