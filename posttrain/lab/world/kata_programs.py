"""Twelve small functions, each in three ways of different complexity, as templates with choices to fill.

A template is Python in which `$` marks a choice:

    $[ $]    hold    list: what is summed is first a list; lazy: a generator
    $LT $GT  edge    open: < and >; closed: <= and >=
    $E $LO   edge    open: nothing, `1 - k`; closed: ` + 1`, `-k`: ends that are left out or taken in
    $B $A    edge    which of the two bisections, and the other one; $PM: - or +
    $S       bound   whole: nothing; short: `[1:]`, the mistake of losing the first item
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

PRELUDE = """from bisect import bisect_left, bisect_right, insort
from collections import deque
from itertools import accumulate, groupby

"""
CHOICES: dict[str, dict[str, str]] = {
    "list": {"$[": "[", "$]": "]"},
    "lazy": {"$[": "", "$]": ""},
    "open": {"$LT": "<", "$GT": ">", "$LO": "1 - k", "$E": "", "$B": "left", "$A": "right", "$PM": "-"},
    "closed": {"$LT": "<=", "$GT": ">=", "$LO": "-k", "$E": " + 1", "$B": "right", "$A": "left", "$PM": "+"},
    "whole": {"$S": ""},
    "short": {"$S": "[1:]"},
}
HOLDS, EDGES, BOUNDS = ("list", "lazy"), ("open", "closed"), ("whole", "short")


@dataclass(frozen=True, slots=True)
class Family:
    """A function `solve`, in three ways from slow to fast, for inputs of three sizes.

    inputs  (draw, size) -> the arguments of one call; they tell both edges and both bounds apart
    """

    inputs: Callable[[Random, int], tuple[Any, ...]]
    sizes: tuple[int, int, int]
    ways: Mapping[str, str]


def render(template: str, *choices: str) -> str:
    """The Python of a template with its choices (a hold, an edge, a bound) made."""
    for choice in choices:
        for mark, text in CHOICES[choice].items():
            template = template.replace(mark, text)
    return PRELUDE + template.strip() + "\n"


# ---- inputs


def spans(draw: Random, n: int) -> tuple[Any, ...]:
    starts = [draw.randrange(n // 2) for _ in range(n // 2)]
    return [draw.randint(1, 9) for _ in range(n)], [[a, draw.randrange(a + n // 4, n)] for a in starts]


def addends(draw: Random, n: int) -> tuple[Any, ...]:
    return [0, *(draw.randint(1, 40) for _ in range(n - 1))], 40


def repeats(draw: Random, n: int) -> tuple[Any, ...]:
    xs = [draw.randrange(n // 4) for _ in range(n)]
    return [xs[-1]] * 4 + xs, 4


def scatter(draw: Random, n: int) -> tuple[Any, ...]:
    xs = [draw.randrange(12 * n) for _ in range(n)]
    return xs, [xs[0], *(draw.randrange(12 * n) for _ in range(n))], 3


def letters(draw: Random, n: int) -> tuple[Any, ...]:
    drawn = ["".join(draw.choice("abc") for _ in range(5)) for _ in range(n)]
    return ([drawn[-1][::-1], *drawn],)


def heights(draw: Random, n: int) -> tuple[Any, ...]:
    return [draw.randint(1, 9999) for _ in range(n)], n // 4


def halves(draw: Random, n: int) -> tuple[Any, ...]:
    return [draw.randint(1, 9) for _ in range(n)], 5 * n // 2


def peaks(draw: Random, n: int) -> tuple[Any, ...]:
    return ([n, *(draw.randrange(n // 2) for _ in range(n))],)


def numbers(draw: Random, n: int) -> tuple[Any, ...]:
    return ([2 * n, *(draw.randint(1, 2 * n) for _ in range(n // 2))],)


def single(draw: Random, n: int) -> tuple[Any, ...]:
    return (n,)


# ---- functions

SUMS = {
    "loop": """
def solve(xs, spans):
    total = 0
    for a, b in spans$S:
        for i in range(a, b$E):
            total += xs[i]
    return total
""",
    "scan": """
def solve(xs, spans):
    return sum($[sum(xs[a : b$E]) for a, b in spans$S$])
""",
    "table": """
def solve(xs, spans):
    before = [0, *accumulate(xs)]
    return sum($[before[b$E] - before[a] for a, b in spans$S$])
""",
}
PAIRS = {
    "loop": """
def solve(xs, k):
    xs = xs$S
    return sum($[1 for i in range(len(xs)) for j in range(i) if xs[i] + xs[j] $LT k$])
""",
    "search": """
def solve(xs, k):
    xs = sorted(xs$S)
    return sum($[bisect_$B(xs, k - x, 0, i) for i, x in enumerate(xs)$])
""",
    "march": """
def solve(xs, k):
    xs = sorted($[x for x in xs$S$])
    low, high, count = 0, len(xs) - 1, 0
    while low < high:
        if xs[low] + xs[high] $LT k:
            count += high - low
            low += 1
        else:
            high -= 1
    return count
""",
}
DUPLICATES = {
    "loop": """
def solve(xs, k):
    xs = xs$S
    return sum($[1 for x in xs if k $LT sum($[1 for y in xs if x == y$])$])
""",
    "scan": """
def solve(xs, k):
    xs = xs$S
    return sum($[1 for x in xs if k $LT xs.count(x)$])
""",
    "hash": """
def solve(xs, k):
    counts = {}
    for x in xs$S:
        counts[x] = counts.get(x, 0) + 1
    return sum($[count for count in counts.values() if k $LT count$])
""",
}
FIBONACCI = {
    "recurse": """
def number(i):
    return 1 if i < 2 else number(i - 1) + number(i - 2)

def solve(n):
    return sum($[number(i) for i in range(n$E)$S$])
""",
    "loop": """
def number(n):
    a, b = 1, 1
    for _ in range(n):
        a, b = b, a + b
    return a

def solve(n):
    return sum($[number(i) for i in range(n$E)$S$])
""",
    "table": """
def solve(n):
    numbers = [1, 1]
    while len(numbers) < n$E:
        numbers.append(numbers[-1] + numbers[-2])
    return sum($[x for x in numbers$S$])
""",
}
GCD = {
    "trial": """
def solve(n):
    return sum($[max($[d for d in range(1, i + 1) if i % d == n % d == 0$]) for i in range(1, n$E)$S$])
""",
    "subtract": """
def gcd(a, b):
    while a != b:
        if a > b:
            a -= b
        else:
            b -= a
    return a

def solve(n):
    return sum($[gcd(i, n) for i in range(1, n$E)$S$])
""",
    "euclid": """
def gcd(a, b):
    while b:
        a, b = b, a % b
    return a

def solve(n):
    return sum($[gcd(i, n) for i in range(1, n$E)$S$])
""",
}
MEMBERS = {
    "loop": """
def solve(xs, queries, k):
    return sum($[1 for q in queries$S if any($[abs(x - q) $LT k for x in xs$])$])
""",
    "search": """
def solve(xs, queries, k):
    xs = sorted(xs)
    return sum($[1 for q in queries$S if bisect_$A(xs, q - k) < bisect_$B(xs, q + k)$])
""",
    "hash": """
def solve(xs, queries, k):
    reached = {x + d for x in xs for d in range($LO, k$E)}
    return sum($[1 for q in queries$S if q in reached$])
""",
}
ANAGRAMS = {
    "loop": """
def solve(words):
    words = words$S
    return sum($[1 for i in range(len(words)) for j in range(i$E) if sorted(words[i]) == sorted(words[j])$])
""",
    "sort": """
def solve(words):
    runs = groupby(sorted($[sorted(word) for word in words$S$]))
    counts = [len(list(run)) for _, run in runs]
    return sum($[count * (count $PM 1) // 2 for count in counts$])
""",
    "hash": """
def solve(words):
    counts = {}
    for word in words$S:
        key = "".join(sorted(word))
        counts[key] = counts.get(key, 0) + 1
    return sum($[count * (count $PM 1) // 2 for count in counts.values()$])
""",
}
WINDOWS = {
    "loop": """
def solve(xs, k):
    total = 0
    for i in range(len(xs) - (k$E) + 1)$S:
        most = xs[i]
        for j in range(i, i + k$E):
            if xs[j] > most:
                most = xs[j]
        total += most
    return total
""",
    "scan": """
def solve(xs, k):
    k = k$E
    return sum($[max(xs[i : i + k]) for i in range(len(xs) - k + 1)$S$])
""",
    "stack": """
def solve(xs, k):
    k, kept, tops = k$E, deque(), []
    for i, x in enumerate(xs):
        while kept and xs[kept[-1]] <= x:
            kept.pop()
        kept.append(i)
        if kept[0] <= i - k:
            kept.popleft()
        if i >= k - 1:
            tops.append(xs[kept[0]])
    return sum($[top for top in tops$S$])
""",
}
PRIMES = {
    "trial": """
def solve(n):
    return sum($[m for m in range(2, n$E)$S if all($[m % d for d in range(2, m)$])$])
""",
    "root": """
def solve(n):
    return sum($[m for m in range(2, n$E)$S if all($[m % d for d in range(2, int(m**0.5) + 1)$])$])
""",
    "sieve": """
def solve(n):
    prime = [True] * (n + 1)
    for d in range(2, int(n**0.5) + 1):
        if prime[d]:
            prime[d * d :: d] = [False] * len(prime[d * d :: d])
    return sum($[m for m in range(2, n$E)$S if prime[m]$])
""",
}
SUBARRAYS = {
    "loop": """
def solve(xs, k):
    xs, count = xs$S, 0
    for i in range(len(xs)):
        total = 0
        for x in xs[i:]:
            total += x
            if total $LT k:
                count += 1
    return count
""",
    "search": """
def solve(xs, k):
    before = [0, *accumulate(xs$S)]
    return sum($[j - bisect_$A(before, before[j] - k, 0, j) for j in range(1, len(before))$])
""",
    "march": """
def solve(xs, k):
    xs, low, total, count = xs$S, 0, 0, 0
    for high, x in enumerate($[x for x in xs$]):
        total += x
        while not total $LT k:
            total -= xs[low]
            low += 1
        count += high - low + 1
    return count
""",
}
INVERSIONS = {
    "loop": """
def solve(xs):
    xs = xs$S
    return sum($[1 for j in range(len(xs)) for i in range(j) if xs[i] $GT xs[j]$])
""",
    "merge": """
def counted(xs):
    if len(xs) < 2:
        return xs, 0
    half = len(xs) // 2
    (left, a), (right, b) = counted(xs[:half]), counted(xs[half:])
    merged, i, count = [], 0, a + b
    for x in right:
        while i < len(left) and not left[i] $GT x:
            merged.append(left[i])
            i += 1
        count += len(left) - i
        merged.append(x)
    return merged + left[i:], count

def solve(xs):
    return counted(list($[x for x in xs$S$]))[1]
""",
    "search": """
def solve(xs):
    seen, found = [], []
    for x in xs$S:
        found.append(len(seen) - bisect_$A(seen, x))
        insort(seen, x)
    return sum($[count for count in found$])
""",
}
DIVISORS = {
    "trial": """
def solve(ms):
    return sum($[1 for m in ms$S for d in range(1, m$E) if m % d == 0$])
""",
    "sieve": """
def solve(ms):
    top = max(ms)
    counts = [0] * (top + 1)
    for d in range(1, top + 1):
        for m in range(d, top + 1, d):
            counts[m] += 1
    return sum($[counts[m] - 1$E for m in ms$S$])
""",
    "root": """
def divisors(m):
    count, d = -1$E, 1
    while d * d < m:
        count += 2 * (m % d == 0)
        d += 1
    return count + (d * d == m)

def solve(ms):
    return sum($[divisors(m) for m in ms$S$])
""",
}
FAMILIES: dict[str, Family] = {
    "sums": Family(spans, (320, 400, 500), SUMS),
    "pairs": Family(addends, (260, 320, 400), PAIRS),
    "duplicates": Family(repeats, (240, 300, 400), DUPLICATES),
    "fibonacci": Family(single, (18, 19, 20), FIBONACCI),
    "gcd": Family(single, (240, 300, 360), GCD),
    "members": Family(scatter, (180, 220, 280), MEMBERS),
    "anagrams": Family(letters, (80, 100, 120), ANAGRAMS),
    "windows": Family(heights, (320, 400, 500), WINDOWS),
    "primes": Family(single, (503, 701, 907), PRIMES),
    "subarrays": Family(halves, (320, 400, 500), SUBARRAYS),
    "inversions": Family(peaks, (260, 320, 400), INVERSIONS),
    "divisors": Family(numbers, (200, 260, 320), DIVISORS),
}
