"""ListOps: labels compared with a plain evaluator of the rules, the grammar with a plain recursive sampler."""

import random
import statistics
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlocal_nets.data.base import CorruptFileError
from nonlocal_nets.data.listops import PARTS, TOKENS, Grammar, ListOps, encode, evaluate, fake, generate, read

RULES = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
SHORT = {"min_length": 4, "max_length": 40, "max_depth": 4, "max_args": 4, "train_samples": 30}


def names(tokens):
    return [TOKENS[code] for code in tokens.tolist()]


def parse(rest):
    """A digit, or an operator and its arguments; removes their tokens from the front of the list."""
    token = rest.pop(0)
    if token.isdigit():
        return int(token)
    arguments = []
    while rest[0] != "]":
        arguments.append(parse(rest))
    rest.pop(0)
    return token, arguments


def value(tree):
    return tree if isinstance(tree, int) else RULES[tree[0]]([value(argument) for argument in tree[1]])


def depth(tree):
    return 1 if isinstance(tree, int) else 1 + max(map(depth, tree[1]))


def nodes(tree, level=1):
    """The depth of each node, and the node: a digit, or an operator with its arguments."""
    yield level, tree
    for argument in [] if isinstance(tree, int) else tree[1]:
        yield from nodes(argument, level + 1)


def trees(data):
    found = []
    for tokens in data.values:
        rest = names(tokens)
        found.append(parse(rest))
        assert not rest, "a single expression"
    return found


# --- generated expressions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("[MED 1 4 ]", 2),  # 2.5, rounded down
        ("[MED 9 2 8 3 ]", 5),
        ("[MED 7 1 5 ]", 5),
        ("[SM 9 5 ]", 4),
        ("[SM 5 5 ]", 0),
        ("[MIN 4 2 8 ]", 2),
        ("[MAX 4 2 8 ]", 8),
    ],
)
def test_operators(expression, result):
    operator, *digits = expression.removesuffix(" ]").split()
    assert value((operator, [int(digit) for digit in digits])) == result, "of the oracle"
    arguments = np.array([int(digit) for digit in digits] + [6, 1])  # and those of a second operator, MIN
    codes = np.array([TOKENS.index(operator), TOKENS.index("[MIN")])
    assert evaluate(codes, arguments, np.array([len(digits), 2])).tolist() == [result, 1]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 5),
    longest=st.integers(30, 300),
    max_depth=st.integers(3, 12),
    max_args=st.integers(3, 12),
)
def test_values_lengths_depths_and_arguments(seed, longest, max_depth, max_args):
    data = generate(Grammar(8, longest, max_depth, max_args), seed, "val", 20)
    assert len(data) == 20
    assert all(8 <= length <= longest for length in data.lengths)
    for tree, label in zip(trees(data), data.targets, strict=True):
        assert value(tree) == label
        assert depth(tree) <= max_depth
        assert all(2 <= len(node[1]) <= max_args for _, node in nodes(tree) if not isinstance(node, int))


def test_the_published_lengths_by_default():
    data = ListOps()
    assert (data.input_size, data.num_classes, data.tokens) == ((15, 2000), 10, True)
    assert list(data.samples.values()) == [96000, 2000, 2000]
    some = generate(data.grammar, data.seed, "test", 300)
    assert min(some.lengths) >= 500
    assert 1900 < max(some.lengths) <= 2000
    assert 9 <= max(map(depth, trees(some))) <= 10
    assert set(some.targets) == set(range(10))
    for tree, label in zip(trees(some), some.targets, strict=True):
        assert value(tree) == label


def test_the_grammar_without_limits_of_the_length():
    """Its shares in 4,000 trees; the tolerances are at least four standard deviations."""
    data = generate(Grammar(1, 10**6, 4, 5), 0, "train", 4000)
    found = trees(data)
    below = [node for tree in found for level, node in nodes(tree) if level < 4]
    operators = [node for node in below if not isinstance(node, int)]
    assert len(operators) / len(below) == pytest.approx(0.25, abs=0.02)
    assert all(isinstance(node, int) for tree in found for level, node in nodes(tree) if level == 4)
    for samples, values in (
        ([node[0] for node in operators], RULES),
        ([len(node[1]) for node in operators], [2, 3, 4, 5]),
        ([node for node in below if isinstance(node, int)], range(10)),
    ):
        counts = Counter(samples)
        assert counts.keys() == set(values)
        for count in counts.values():
            assert count / len(samples) == pytest.approx(1 / len(values), abs=2.5 / len(samples) ** 0.5)


def test_lengths_have_the_distribution_of_a_plain_sampler():
    """It samples trees by the rule of the published generator, node by node, and rejects those of other lengths."""
    generator = random.Random(0)

    def sample(level):
        if level == 6 or generator.random() > 0.25:
            return 1
        return 2 + sum(sample(level + 1) for _ in range(generator.randint(2, 6)))

    plain = [length for length in (sample(1) for _ in range(20_000)) if 10 <= length <= 60]
    ours = generate(Grammar(10, 60, 6, 6), 0, "train", 3000).lengths
    error = (statistics.variance(plain) / len(plain) + statistics.variance(ours) / len(ours)) ** 0.5
    assert statistics.mean(ours) == pytest.approx(statistics.mean(plain), abs=4 * error)
    for low, high in ((10, 15), (16, 30), (31, 60)):
        shares = [sum(low <= length <= high for length in lengths) / len(lengths) for lengths in (plain, ours)]
        assert shares[0] == pytest.approx(shares[1], abs=0.05)


def test_a_sample_depends_on_seed_part_and_index_alone():
    grammar = Grammar(4, 40, 4, 4)

    def expressions(seed, part, samples):
        data = generate(grammar, seed, part, samples)
        return [(*names(tokens), label) for tokens, label in zip(data.values, data.targets, strict=True)]

    first = expressions(0, "train", 300)
    assert first[:7] == expressions(0, "train", 7), "not on the number of samples"
    assert first == expressions(0, "train", 300)
    for other in (expressions(1, "train", 300), expressions(0, "val", 300)):
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 20
    assert first[:44] != first[256:], "chunks differ"


def test_the_data_module_generates_its_parts_and_batches_similar_lengths():
    data = ListOps(**SHORT, val_samples=3, test_samples=5, batch_size=5, seed=2)
    for part, count in zip(PARTS, (30, 3, 5), strict=True):
        found, expected = data.dataset(part), generate(Grammar(4, 40, 4, 4), 2, part, count)
        assert found.targets == expected.targets
        assert all(torch.equal(a, b) for a, b in zip(found.values, expected.values, strict=True))
    batches = list(data.train_dataloader())
    assert sorted(label for _, labels in batches for label in labels.tolist()) == sorted(data.dataset("train").targets)
    for (x, mask), labels in batches:
        mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        for tokens, valid, label in zip(x, mask, labels, strict=True):
            assert value(parse(names(tokens[valid]))) == label
    longest = sorted(inputs.shape[1] for (inputs, _), _ in batches)
    assert longest == [sorted(data.dataset("train").lengths)[k] for k in range(4, 30, 5)]


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_in_the_published_format(tmp_path):
    data = ListOps(**fake(tmp_path), batch_size=2)
    for part in PARTS:
        expected = generate(Grammar(10, 30, 4, 4), 0, part, {"train": 12}.get(part, 4))
        found = data.dataset(part)
        assert found.targets == expected.targets
        assert all(torch.equal(a, b) for a, b in zip(found.values, expected.values, strict=True))
        lines = (tmp_path / f"basic_{part}.tsv").read_text().splitlines()
        assert lines[0] == "Source\tTarget"
        assert all(line.count("(") == line.count(")") > 0 for line in lines[1:])
    assert data.input_size == (15, max(data.dataset("train").lengths))


def test_a_line_as_the_published_generator_writes_it(tmp_path):
    """The string that it writes for ((((MED, 3), ((("[MAX", 2), 9), "]")), 4), "]")."""
    path = tmp_path / "some.tsv"
    path.write_text("Source\tTarget\n( ( ( ( [MED 3 ) ( ( ( [MAX 2 ) 9 ) ] ) ) 4 ) ] )\t4\n")
    data = read(path, 100)
    assert [names(tokens) for tokens in data.values] == [["[MED", "3", "[MAX", "2", "9", "]", "4", "]"]]
    assert data.targets == [4]


def test_fake_writes_files_as_the_published_generator(tmp_path):
    def plain(tree):
        """Nested pairs, as the generator builds and writes them."""
        if isinstance(tree, int):
            return str(tree)
        text = tree[0]
        for argument in [*map(plain, tree[1]), "]"]:
            text = f"( {text} {argument} )"
        return text

    fake(tmp_path)
    data = generate(Grammar(10, 30, 4, 4), 0, "train", 12)
    lines = (tmp_path / "basic_train.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[0] for line in lines] == [plain(tree) for tree in trees(data)]


@pytest.mark.parametrize("header", ["Source\tTarget\n", ""])
def test_predict_on_a_file(tmp_path, header):
    path = tmp_path / "new.txt"
    path.write_text(f"{header}[MAX 1 2 ]\n\n7\n( ( ( [SM 1 ) 2 ) ] )\t3\n")
    (x, mask), lines = next(iter(ListOps(**SHORT, path=str(path)).predict_dataloader()))
    first = 2 if header else 1
    assert list(lines) == [f"{path}:{first + k}" for k in (0, 2, 3)]
    assert [names(tokens[valid]) for tokens, valid in zip(x, mask, strict=True)] == [
        ["[MAX", "1", "2", "]"],
        ["7"],
        ["[SM", "1", "2", "]"],
    ]
    with pytest.raises(ValueError, match=r"predict needs expressions: --data\.path="):
        ListOps(**SHORT).predict_dataset()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[MIN 1 2 [AVG 3 4 ] ]\t1", r"unknown token '\[AVG'; expected \[MIN \[MAX \[MED \[SM \] or a digit"),
        ("[MIN 1 12 ]\t1", "unknown token '12'"),
        ("[MIN 1 2\t1", r"not one balanced expression: '\[MIN 1 2'"),
        ("[MIN 1 2 ] ]\t1", "not one balanced expression"),
        ("] 1 [MIN\t1", "not one balanced expression"),
        ("1 2\t1", "not one balanced expression"),
        ("[MIN 1 [MAX ] ]\t1", "not one balanced expression"),
        ("[MIN 1 2 ] [MIN 1 2 ]\t1", "not one balanced expression"),
        ("( )\t1", "not one balanced expression: ''"),
        ("[MIN " + "1 " * 30 + "]\t1", "32 tokens, more than max_length=31"),
        ("[MIN 1 2 ]\t10", "the label must be a digit, 0 to 9, got '10'"),
        ("[MIN 1 2 ]\t]", "the label must be a digit, 0 to 9, got ']'"),
        ("[MIN 1 2 ]", "the label must be a digit, 0 to 9, got ''"),
        ("\t5", "not one balanced expression: ''"),
    ],
)
def test_an_invalid_line_is_named(tmp_path, line, message):
    root = fake(tmp_path)["root"]
    path = tmp_path / "basic_val.tsv"
    path.write_text(f"Source\tTarget\n[MIN 1 2 ]\t1\n{line}\n")
    with pytest.raises(CorruptFileError, match=rf"basic_val.tsv, line 3: {message}"):
        ListOps(root, max_length=31)


def test_invalid_files(tmp_path):
    root = fake(tmp_path)["root"]
    path = tmp_path / "basic_test.tsv"
    path.write_text("Source\tTarget\n")
    with pytest.raises(CorruptFileError, match=r"basic_test.tsv is empty: expected expressions"):
        ListOps(root)
    path.write_text("[MIN 1 2 ]\t1\n")
    with pytest.raises(
        CorruptFileError, match=r"basic_test.tsv, line 1: expected the header Source, Target, got '\[MIN"
    ):
        ListOps(root)
    path.write_bytes(b"Source\tTarget\n\xff\xfe\t1\n")
    with pytest.raises(CorruptFileError, match=r"basic_test.tsv, line 2: unknown token"):
        ListOps(root)
    path.unlink()
    with pytest.raises(ValueError, match=r"no file .*basic_test.tsv: expected a tsv file with the columns Source"):
        ListOps(root)
    (tmp_path / "new.txt").write_text("")
    with pytest.raises(CorruptFileError, match=r"new.txt is empty"):
        ListOps(**SHORT, path=str(tmp_path / "new.txt"))
    with pytest.raises(ValueError, match=r"no file .*nowhere.txt: expected one expression per line"):
        ListOps(**SHORT, path=str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"train_samples": 0}, "train_samples must be at least 1, got 0"),
        ({"min_length": 0}, "min_length must be at least 1, got 0"),
        ({"max_length": 3}, "max_length must be at least 4, got 3"),
        ({"max_depth": 0}, "max_depth must be at least 1, got 0"),
        ({"max_args": 1}, "max_args must be at least 2, got 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"min_length": 2, "max_length": 3}, r"none of \d+ random expressions .*min_length=2, max_length=3"),
        ({"max_depth": 1}, "choose wider lengths"),
    ],
)
def test_invalid_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        ListOps(**SHORT | args)


@given(st.lists(st.sampled_from([*TOKENS, "(", ")"]), max_size=12))
def test_exactly_the_expressions_that_can_be_evaluated_are_accepted(tokens):
    kept = [token for token in tokens if token not in "()"]
    try:
        tree = parse(rest := list(kept))
        value(tree)
        valid = not rest and all(isinstance(node, int) or node[1] for _, node in nodes(tree))  # [SM ] has no value
    except (IndexError, ValueError, KeyError, statistics.StatisticsError):
        valid = False
    if valid:
        assert names(encode(" ".join(tokens), "here", 12)) == kept
    else:
        with pytest.raises(CorruptFileError):
            encode(" ".join(tokens), "here", 12)
