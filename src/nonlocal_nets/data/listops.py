"""ListOps (Nangia and Bowman 2018) with the lengths of the Long Range Arena (Tay et al. 2021): nested list operations.

    [MAX 4 [MIN 2 8 ] 0 [SM 9 5 ] ]    has the value 4

The grammar is that of the arena's generator (google-research/long-range-arena, lra_benchmarks/data/listops.py): a node
is an operator with probability 0.25, else a digit, and always a digit at the maximum depth. An operator has 2 to
`max_args` arguments. The numbers of arguments, the operators and the digits are uniformly distributed. Expressions that
are too short or too long are rejected. MED is the median, rounded down, and SM the sum modulo 10.

By default the depth of 10, the 10 arguments, the 500 to 2,000 tokens and the 96,000, 2,000 and 2,000 samples are the
arena's. The random numbers are not, so the samples differ from the published files. Those files contain no expression
twice, and none of 500 or 2,000 tokens; here both are possible, but only short expressions are likely to repeat.

The tokens are those that the arena's models see: its tokeniser drops the round brackets in the files. (Before commit
c209b2a it dropped the closing square brackets too; results from that time are for a harder task.)
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonlocal_nets.data.base import MOST_SAMPLES, CorruptFileError, check_maximum, check_minimum
from nonlocal_nets.data.sequences import SequenceDataModule, Sequences
from nonlocal_nets.data.trained import MissingDataError, training_data

TOKENS = ("[MIN", "[MAX", "[MED", "[SM", "]", *"0123456789")
CODES = {token: code for code, token in enumerate(TOKENS)}
END, ZERO = CODES["]"], CODES["0"]  # the codes of operators are below END
OPERATOR_SHARE = 0.25
PARTS = ("train", "val", "test")
CHUNK = 256  # samples that share a random generator
TREES = 1024  # trees that grow at the same time
TRIES = 100  # unsuccessful attempts before giving up on the requested lengths

Numbers = NDArray[np.int64]


class Grammar(NamedTuple):
    """Limits of the expressions to generate."""

    min_length: int  # in tokens
    max_length: int
    max_depth: int
    max_args: int


class ListOps(SequenceDataModule):
    """Expressions of nested list operations as tokens; the label is the value of the expression, 0 to 9.

    The expressions are read from the published files or generated. Sample k of a part is then a function of
    (seed, part, k) and the grammar alone; the 96,000 training samples take 20 seconds on one core.

    Args:
        root: a folder with basic_train.tsv, basic_val.tsv and basic_test.tsv, with columns Source and Target; null:
            generate the samples.
        train_samples: number of generated training samples; they are the same in each epoch.
        val_samples: number of generated validation samples.
        test_samples: number of generated test samples.
        min_length: minimum length of a generated expression, in tokens.
        max_length: maximum length of an expression, in tokens; a longer one in a file is an error.
        max_depth: maximum depth of a generated expression; a single digit has depth 1.
        max_args: maximum number of arguments of a generated operator.
        seed: seed of the generated samples.
        batch_size: samples per batch. In training an incomplete last batch is dropped.
        num_workers: number of processes that load; 0, the main process, is fast enough here.
        path: for `predict`, such a tsv file, or a file with one expression per line. The name of a sample is
            <file>:<line>.

    Raises:
        ValueError: an invalid argument, lengths that no expression has, or a missing file.
        CorruptFileError: an unknown token, an expression that is unbalanced or too long, a label outside 0 to 9, or an
            empty file. The message names the file and the line.
    """

    tokens = True
    token_names = TOKENS

    def __init__(
        self,
        root: str | None = None,
        train_samples: int = 96_000,
        val_samples: int = 2_000,
        test_samples: int = 2_000,
        min_length: int = 500,
        max_length: int = 2_000,
        max_depth: int = 10,
        max_args: int = 10,
        seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 0,
        path: str | None = None,
    ) -> None:
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}
        minimum = {f"{part}_samples": (samples, 1) for part, samples in self.samples.items()}
        minimum |= {"min_length": (min_length, 1), "max_length": (max_length, 1 if root else min_length)}
        check_minimum(minimum | {"max_depth": (max_depth, 1), "max_args": (max_args, 2), "seed": (seed, 0)})
        check_maximum({f"{part}_samples": (samples, MOST_SAMPLES) for part, samples in self.samples.items()})
        self.grammar, self.seed = Grammar(min_length, max_length, max_depth, max_args), seed
        self.to_predict = None if path is None else read(Path(path), max_length, labelled=False)
        self.parts: dict[str, Sequences] = {}
        if root is None:
            generate(self.grammar, seed, "train", 1)  # raises if no expression has such a length
        else:
            self.parts, max_length = training_data(
                partial(read_parts, Path(root), max_length), lambda trained: ({}, trained["input_size"][1])
            )
        super().__init__(TOKENS[ZERO:], len(TOKENS), max_length, batch_size, num_workers)

    def dataset(self, part: str) -> Sequences:
        return self.parts[part] if self.parts else generate(self.grammar, self.seed, part, self.samples[part])

    def predict_dataset(self) -> Sequences:
        if self.to_predict is None:
            raise ValueError("predict needs expressions: --data.path=<tsv file, or file with one expression per line>")
        return self.to_predict


def read_parts(root: Path, max_length: int) -> tuple[dict[str, Sequences], int]:
    """The parts in the published files, and the length of the longest training expression."""
    parts = {part: read(root / f"basic_{part}.tsv", max_length) for part in PARTS}
    return parts, max(parts["train"].lengths)


def generate(grammar: Grammar, seed: int, part: str, samples: int) -> Sequences:
    """The first samples of a part and their values; each token takes one byte."""
    expressions: list[Tensor] = []
    values: list[int] = []
    for chunk in range(-(-samples // CHUNK)):
        random = np.random.default_rng([seed, PARTS.index(part), chunk])
        begin, tries = len(values), 0
        while len(values) < begin + CHUNK:
            tokens, lengths, found = express(grow(grammar, random), random)
            expressions += torch.split(torch.from_numpy(tokens), lengths.tolist())
            values += found.tolist()
            tries = 0 if len(found) else tries + 1
            if tries == TRIES:
                raise ValueError(f"none of {TRIES * TREES} random expressions fits {grammar}: choose wider lengths")
        del expressions[begin + CHUNK :], values[begin + CHUNK :]
    return Sequences(expressions[:samples], values[:samples])


def grow(grammar: Grammar, random: np.random.Generator) -> list[Numbers]:
    """Random trees with lengths within the limits: for each depth, the number of arguments of each node, 0 for a digit.

    At each depth the nodes are sorted by tree and, within a tree, by parent.
    """
    levels, tree, length = [], np.arange(TREES), np.zeros(TREES, np.int64)
    for depth in range(1, grammar.max_depth + 1):
        arguments = random.integers(2, grammar.max_args, len(tree), endpoint=True)
        arguments[(random.random(len(tree)) >= OPERATOR_SHARE) | (depth == grammar.max_depth)] = 0
        levels.append((tree, arguments))
        length += np.bincount(tree[arguments > 0], minlength=TREES) + np.bincount(tree, minlength=TREES)
        tree = np.repeat(tree, arguments)
        tree = tree[length[tree] <= grammar.max_length]  # trees that are too long already stop growing
    kept = (length >= grammar.min_length) & (length <= grammar.max_length)
    return [arguments[kept[tree]] for tree, arguments in levels]


def express(levels: Sequence[Numbers], random: np.random.Generator) -> tuple[NDArray[np.uint8], Numbers, Numbers]:
    """Fill trees with random operators and digits: the tokens of all trees, concatenated, their lengths and values."""
    nodes = []  # for each depth, the deepest first: tokens, lengths and numbers of arguments
    size = value = np.zeros(0, np.int64)
    for arguments in reversed(levels):
        operator = arguments > 0
        token = np.where(operator, random.integers(END, size=len(arguments)), ZERO)
        digit = random.integers(10, size=len(arguments))
        token[~operator] += digit[~operator]
        below, size = size, np.ones_like(arguments)
        below_value, value = value, digit
        size[operator] = 2 + np.add.reduceat(below, _firsts(arguments[operator]))
        value[operator] = evaluate(token[operator], below_value, arguments[operator])
        nodes.append((token, size, arguments))
    return _in_order(nodes[::-1]), size, value


def evaluate(operator: Numbers, values: Numbers, counts: Numbers) -> Numbers:
    """The value of each operator; `values` has the arguments of all operators, concatenated, `counts` their numbers."""
    first = _firsts(counts)
    ordered = np.sort(np.repeat(10 * np.arange(len(counts)), counts) + values) % 10
    median = (ordered[first + (counts - 1) // 2] + ordered[first + counts // 2]) // 2
    results = [ordered[first], ordered[first + counts - 1], median, np.add.reduceat(values, first) % 10]
    return np.choose(operator, results)


def _in_order(nodes: Sequence[tuple[Numbers, Numbers, Numbers]]) -> NDArray[np.uint8]:
    """The tokens in reading order, from the tokens, lengths and numbers of arguments at each depth."""
    size = nodes[0][1]
    tokens, start = np.empty(size.sum(), np.uint8), _firsts(size)
    belows = [below for _, below, _ in nodes[1:]] + [np.zeros(0, np.int64)]
    for (token, size, arguments), below in zip(nodes, belows, strict=True):
        operator = arguments > 0
        tokens[start] = token
        tokens[(start + size - 1)[operator]] = END
        offset, counts = _firsts(below), arguments[operator]
        start = offset + np.repeat(start[operator] + 1 - offset[_firsts(counts)], counts)
    return tokens


def _firsts(counts: Numbers) -> Numbers:
    """The index at which each group begins, for concatenated groups with these counts."""
    return np.cumsum(counts) - counts


def read(path: Path, max_length: int, labelled: bool = True) -> Sequences:
    """The expressions of a file with their labels, or with their names, <file>:<line>, if there are no labels."""
    expressions, targets = [], []
    for number, source, label in _rows(path, labelled):
        where = f"{path}, line {number}"
        expressions.append(encode(source, where, max_length))
        if labelled and label not in TOKENS[ZERO:]:
            raise CorruptFileError(f"{where}: the label must be a digit, 0 to 9, got {label!r}")
        targets.append(int(label) if labelled else f"{path}:{number}")
    if not targets:
        raise CorruptFileError(f"{path} is empty: expected expressions")
    return Sequences(expressions, targets)


def _rows(path: Path, labelled: bool) -> Iterator[tuple[int, str, str]]:
    """Line number, expression and label of each line except the header and empty lines."""
    if not path.is_file():
        expected = "a tsv file with the columns Source and Target" if labelled else "one expression per line"
        raise MissingDataError(f"no file {path}: expected {expected}")
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            source, label = (text.strip() for text in line.partition("\t")[::2])
            if number == 1 and source == "Source":
                continue
            if number == 1 and labelled:
                raise CorruptFileError(f"{path}, line 1: expected the header Source, Target, got {line.strip()[:40]!r}")
            if source or label:
                yield number, source, label


def encode(expression: str, where: str, max_length: int) -> Tensor:
    """The tokens (L,), uint8, of an expression; round brackets are dropped."""
    names = expression.replace("(", " ").replace(")", " ").split()
    if unknown := next((name for name in names if name not in CODES), None):
        given = repr(unknown[:40])
        raise CorruptFileError(f"{where}: unknown token {given}; expected {' '.join(TOKENS[:ZERO])} or a digit")
    if len(names) > max_length:
        raise CorruptFileError(f"{where}: {len(names)} tokens, more than max_length={max_length}")
    tokens = np.array([CODES[name] for name in names], np.uint8)
    depth = np.cumsum((tokens < END) - 1 * (tokens == END))  # number of open brackets
    empty = (tokens[:-1] < END) & (tokens[1:] == END)
    if not len(tokens) or depth[-1] or (depth[:-1] < 1).any() or empty.any():
        raise CorruptFileError(f"{where}: not one balanced expression: {' '.join(names[:12])!r}")
    return torch.from_numpy(tokens)


def fake(root: str | Path) -> dict[str, Any]:
    """Write files as published: 12 training, 4 validation and 4 test expressions of 10 to 30 tokens.

    Returns:
        The arguments with which `ListOps` reads them.
    """
    Path(root).mkdir(parents=True, exist_ok=True)
    for part, samples in zip(PARTS, (12, 4, 4), strict=True):
        data = generate(Grammar(10, 30, 4, 4), 0, part, samples)
        rows = [f"{write(tokens)}\t{value}\r\n" for tokens, value in zip(data.values, data.targets, strict=True)]
        (Path(root) / f"basic_{part}.tsv").write_text("Source\tTarget\r\n" + "".join(rows), newline="")
    return {"root": str(root)}


def write(tokens: Tensor) -> str:
    """An expression as in the published files: round brackets enclose each operator with its arguments so far."""
    pending: list[str] = []  # operators, the innermost last, with their arguments so far
    for token in (TOKENS[code] for code in tokens.tolist()):
        if token in TOKENS[:END]:
            pending.append(token)
            continue
        pending[-1] = f"( {pending[-1]} {token} )"
        if token == "]" and len(pending) > 1:
            argument = pending.pop()
            pending[-1] = f"( {pending[-1]} {argument} )"
    return pending[0]
