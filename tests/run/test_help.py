"""The help of train.py: every argument says what it is, of which type, and what it is by default."""

import re

import pytest

import nonlocal_nets.data
import nonlocal_nets.tasks
from nonlocal_nets.run.cli import main
from nonlocal_nets.run.help import LONGEST, OURS, explain

TASKS = ("ImageClassification", "SequenceClassification", "VideoClassification")
COMMANDS = [[command, "--help"] for command in ("fit", "validate", "test", "predict")]
COMMANDS += [["fit", f"--model.help={name}"] for name in TASKS]
COMMANDS += [["fit", f"--data.help={name}"] for name in nonlocal_nets.data.__all__ if not name.endswith("Error")]


def help_of(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_the_usage_is_one_line_and_every_argument_has_a_sentence_a_type_and_a_default(args, capsys):
    text = help_of(args, capsys)
    assert re.match(r"usage: \S+.*\n\n", text)
    blocks = [" ".join(block.split()) for block in re.findall(r"^  --\S.*(?:\n {6,}.*)*", text, re.M)]
    arguments = [
        block
        for block in blocks
        if not re.match(r"--\S+\.help|--print_config|--(trainer|checkpoint|non_finite) CON", block)
    ]
    assert len(arguments) > 5
    for block in arguments:
        said = re.search(r"(.*) \((required, )?type: (.*?)(, default: .*)?\)$", block)
        assert said, f"no type: {block}"
        assert said[2] or said[4], f"no default: {block}"
        assert len(said[1].split()) >= 4, f"no sentence: {block}"
    assert not re.search(r"``|:\w+:`|<class", text), "markup"


def test_train_help_names_the_commands(capsys):
    text = help_of(["--help"], capsys)
    assert all(re.search(rf"^    {command} ", text, re.M) for command in ("fit", "validate", "test", "predict"))


def test_where_it_differs_from_lightnings_documentation(capsys):
    text = help_of(["fit", "--help"], capsys)
    for name, ours in OURS.items():
        assert "".join(ours.split()) in "".join(text.split()), name
    found = re.search(r"--trainer.enable_progress_bar .*?default: (\w+)\)", " ".join(text.split()))
    assert found[1] == "True", "a default of None is what Lightning makes of it"


def test_explain_drops_markup_and_takes_the_default_out():
    text = "See :class:`~a.b.Thing` and ``x``.\n\n Default: ``True``. More of torch.Tensor, e.g. this."
    assert explain(text) == ("See Thing and x. More of torch.Tensor, e.g. this.", "True")
    assert explain("Disabled by default (None).") == ("Disabled by default (None).", None)
    assert explain("Plain") == ("Plain", None)


def test_explain_keeps_whole_sentences_up_to_a_length():
    first, second = "A" * (LONGEST - 20) + " is long.", "This one is too much for it."
    assert explain(f"{first} {second}")[0] == first
    assert explain(f"{first} Ends.")[0] == f"{first} Ends."
    assert explain("B" * 2 * LONGEST + ".")[0] == "B" * 2 * LONGEST + ".", "the first is never cut"
