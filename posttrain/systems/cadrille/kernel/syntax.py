"""Which programs the kernel runs: assignments of CadQuery expressions, as CAD-Recode writes them, and nothing else.

It is one of two walls: what is not on the list is refused before a process sees it. The other is the sandbox, whose
deadline ends what takes too long, a million holes for instance.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Iterator

RESULT = "r"  # the variable that holds the solid
MOST_CHARACTERS, MOST_NODES, MOST_TEXT = 20_000, 5_000, 100  # of a program, of its syntax tree, of a text in it
LARGEST = 10_000.0  # of a number: programs live in [-100, 100]
CLASSES = frozenset(("Workplane", "Sketch", "Plane", "Vector", "Location"))  # of the module `cq`
METHODS = frozenset(
    (
        *("workplane", "transformed", "center", "copyWorkplane", "end", "first", "last", "item", "add", "newObject"),
        *("faces", "edges", "wires", "vertices", "solids", "shells", "val", "vals", "clean", "tag", "copy"),
        *("moveTo", "move", "lineTo", "line", "hLine", "vLine", "hLineTo", "vLineTo", "polarLine", "polarLineTo"),
        *("threePointArc", "sagittaArc", "radiusArc", "tangentArcPoint", "ellipseArc", "spline", "bezier", "polyline"),
        *("close", "wire", "consolidateWires", "mirrorX", "mirrorY", "offset2D", "toPending"),
        *("rect", "circle", "ellipse", "polygon", "slot2D", "rarray", "polarArray", "pushPoints"),
        *("box", "sphere", "cylinder", "wedge", "extrude", "twistExtrude", "revolve", "sweep", "loft"),
        *("cutBlind", "cutThruAll", "hole", "cboreHole", "cskHole", "shell", "fillet", "chamfer"),
        *("union", "cut", "intersect", "combine", "rotate", "rotateAboutCenter", "translate", "mirror", "moved"),
        *("sketch", "placeSketch", "finalize", "segment", "arc", "assemble", "constrain", "solve", "push", "reset"),
        *("delete", "hull", "offset", "face", "select", "trapezoid", "slot", "regularPolygon", "parray", "distribute"),
    )
)  # of work planes, sketches and shapes: those that make geometry, and neither read, write nor take functions
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UAdd, ast.USub)
HARMLESS = (ast.Expression, ast.Load, ast.Store, ast.Tuple, ast.List, ast.BinOp, ast.UnaryOp, ast.keyword, *OPERATORS)


class Refused(ValueError):
    """The program is not one that the kernel runs."""


def check(program: str) -> None:
    """Raises Refused, saying why, for a program that is not to be run. No text makes it raise anything else."""
    if len(program) > MOST_CHARACTERS:
        raise Refused(f"{len(program)} characters, more than {MOST_CHARACTERS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none, and the like
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"not Python: {type(error).__name__}") from None
    nodes = list(ast.walk(tree))
    if len(nodes) > MOST_NODES:
        raise Refused(f"{len(nodes)} nodes of syntax, more than {MOST_NODES}")
    for statement in tree.body:
        check_statement(statement)
    if not any(RESULT in assigned_names(statement) for statement in tree.body):
        raise Refused(f"nothing is assigned to {RESULT}")


def check_statement(statement: ast.stmt) -> None:
    if isinstance(statement, ast.Import):
        if [(one.name, one.asname) for one in statement.names] != [("cadquery", "cq")]:
            raise Refused("an import of something else than cadquery as cq")
        return
    names = list(assigned_names(statement))
    if not names or any(name == "cq" or name.startswith("_") for name in names):
        raise Refused(f"a statement that is no assignment of a name: {type(statement).__name__}")
    assert isinstance(statement, ast.Assign)
    called = {id(node.func) for node in ast.walk(statement.value) if isinstance(node, ast.Call)}
    for node in ast.walk(statement.value):
        check_node(node, called)


def assigned_names(statement: ast.stmt) -> Iterator[str]:
    """The names of `a = b = ...`; none where something else than names is assigned."""
    if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def check_node(node: ast.AST, called: set[int]) -> None:
    """`called`: the ids of nodes that are called."""
    if isinstance(node, ast.Constant):
        check_constant(node.value)
    elif isinstance(node, ast.Attribute):
        of_module = isinstance(node.value, ast.Name) and node.value.id == "cq"
        if node.attr not in (CLASSES if of_module else METHODS):
            raise Refused(f"the attribute {node.attr[:MOST_TEXT]}")
        if id(node) not in called:
            raise Refused(f"{node.attr} is not called")
    elif isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Attribute) or any(one.arg is None for one in node.keywords):
            raise Refused("a call of something else than a method")
    elif isinstance(node, ast.Name):
        if node.id.startswith("_"):
            raise Refused(f"the name {node.id[:MOST_TEXT]}")
    elif not isinstance(node, HARMLESS):
        raise Refused(f"syntax that is not used in such programs: {type(node).__name__}")


def check_constant(value: object) -> None:
    if isinstance(value, int | float):  # a truth value is an int
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise Refused(f"a number above {LARGEST:g}")
    elif value is not None and not (isinstance(value, str) and len(value) <= MOST_TEXT):
        raise Refused(f"a constant that is no number or short text: {type(value).__name__}")
