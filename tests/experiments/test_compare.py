"""The comparison: which commands it runs, and what it makes of their results. Only the last test trains."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nonlocal_nets.experiments import compare
from nonlocal_nets.run.cli import main

CONFIG = str(Path(__file__).parents[2] / "configs" / "image" / "cued_digits.yaml")
NO_BLOCK = "--model.blocks.at=none"
SMALL = [
    "--data.train_samples=8",
    "--data.val_samples=4",
    "--data.test_samples=40",
    "--data.batch_size=4",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
]
VALUES = {("a", 0): 0.5, ("a", 1): 0.75, ("b", 0): 0.25, ("b", 1): 0.875}


class CommandLine:
    """Stands in for `train.py`: keeps the commands; the best checkpoints have VALUES, the last ones 0.

    By its clock a fit takes 7 s, a test 1 s.
    """

    def __init__(self, monitor="val/accuracy", mode="max"):
        self.model = SimpleNamespace(monitor=monitor, mode=mode)
        self.metric = monitor.replace("val/", "test/")
        self.commands, self.checks, self.clock = [], [], 0

    def __call__(self, args):
        if args[-1] == "--print_config":
            self.checks.append(args)
            if "--typo" in args:
                sys.stderr.write("train.py: error: no argument --typo;\n nearest: --type\n")
                raise SystemExit(2)
            print(f"trainer: {{enable_checkpointing: {'false' if '--no-checkpoints' in args else 'null'}}}")
            raise SystemExit(0)
        self.commands.append(args)
        self.clock += 7 if args[0] == "fit" else 1
        given = dict(zip(args[1::2], args[2::2], strict=True))
        if args[0] == "fit":
            folder = Path("elsewhere/project") / given["--id"]
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(f"{given['--variant']} {given['--seed_everything']}")
            if given["--variant"] == "a":
                (folder / "attention.png").touch()
            return SimpleNamespace(run_folder=folder)
        variant, seed = Path(given["--config"]).read_text().split()
        value = VALUES[variant, int(seed)] if given["--ckpt_path"] == "best" else 0.0
        metrics = {self.metric: torch.tensor(value), "test/other": torch.tensor(1 - value)}
        return SimpleNamespace(model=self.model, trainer=SimpleNamespace(callback_metrics=metrics))


@pytest.fixture
def line(tmp_path, monkeypatch):
    """A function that makes and installs a CommandLine."""

    def install(*args):
        command_line = CommandLine(*args)
        monkeypatch.setattr(compare, "command", command_line)
        monkeypatch.setattr(compare.time, "monotonic", lambda: command_line.clock)
        return command_line

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare.time, "strftime", lambda _: "now")
    Path("a.yaml").touch()
    return install


AB = ["a.yaml", "--seeds=2", "--variant", "A a: --variant a", "--variant", "b: --variant b"]


def test_each_variant_and_seed_is_trained_in_its_folder_and_its_best_checkpoint_tested(line, capsys):
    command_line = line()
    compare.main([*AB, "--", "--common", "1 2"])
    expected = []
    for seed in "01":
        for name in "ab":
            run_id = f"now-{'a-a' if name == 'a' else name}-{seed}"
            args = ["--common", "1 2", "--variant", name]
            expected.append(["fit", "--config", "a.yaml", *args, "--seed_everything", seed, "--id", run_id])
            expected.append(["test", "--config", f"elsewhere/project/{run_id}/config.yaml", "--ckpt_path", "best"])
    assert command_line.commands == expected
    printed = [text.removeprefix("$ ") for text in capsys.readouterr().out.splitlines() if text.startswith("$ ")]
    assert printed == [compare.shlex.join(["python", "-m", "nonlocal_nets", *args]) for args in expected]


def test_rows_csv_table_and_pictures_have_the_values_of_their_runs(line, capsys):
    line()
    rows = compare.main(AB)
    assert [(r["variant"], r["seed"], r["test/accuracy"]) for r in rows] == [
        ("A a", 0, 0.5),
        ("b", 0, 0.25),
        ("A a", 1, 0.75),
        ("b", 1, 0.875),
    ]
    assert Path("elsewhere/project/now.csv").read_text().splitlines() == [
        "variant,seed,test/accuracy,fit seconds,folder",
        "A a,0,0.5,7,elsewhere/project/now-a-a-0",
        "b,0,0.25,7,elsewhere/project/now-b-0",
        "A a,1,0.75,7,elsewhere/project/now-a-a-1",
        "b,1,0.875,7,elsewhere/project/now-b-1",
    ]
    printed = capsys.readouterr().out
    assert re.findall(r"^\|.*", printed, re.M) == [
        "| variant | test/accuracy, mean ± std | lowest to highest | runs | training, s |",
        "|---|---|---|---|---|",
        "| A a | 0.625 ± 0.177 | 0.500 to 0.750 | 2 | 7 |",
        "| b | 0.562 ± 0.442 | 0.250 to 0.875 | 2 | 7 |",
    ]
    folder = "elsewhere/project/now-a-a-1"
    assert f"A a, seed 1: {folder}, picture: {folder}/attention.png\nb, seed 1: elsewhere/project/now-b-1\n" in printed


@pytest.mark.parametrize(
    ("task", "args", "metric", "names"),
    [
        (("val/error", "min"), [], "test/error", ["b", "A a"]),
        (("val/error", "max"), ["--metric=test/error"], "test/error", ["A a", "b"]),
        (("loss", "min"), [], "loss", ["b", "A a"]),
        (("val/error", "max"), ["--metric=test/other"], "test/other", ["A a", "b"]),
    ],
)
def test_the_metric_is_the_one_given_or_the_tasks_and_its_best_mean_is_first(line, capsys, task, args, metric, names):
    """How good the values of another metric are is not known: then the variants keep their order."""
    line(*task)
    rows = compare.main([*AB, *args])
    other = metric == "test/other"
    assert [r[metric] for r in rows] == [1 - v if other else v for v in (0.5, 0.25, 0.75, 0.875)]
    printed = capsys.readouterr().out
    assert f"| variant | {metric}, mean" in printed
    assert re.findall(r"^\| ([Aab ]+) \| 0", printed, re.M) == names


def test_a_metric_that_the_test_does_not_have_ends_it_after_one_run(line, capsys):
    command_line = line()
    with pytest.raises(SystemExit, match="2"):
        compare.main([*AB, "--metric=test/acuracy"])
    message = "no metric 'test/acuracy' after the test; there are: test/accuracy, test/other"
    assert capsys.readouterr().err == f"train.py compare: error: {message}\n"
    assert len(command_line.commands) == 2


def test_variants_that_monitor_different_metrics_need_one_to_be_chosen(line, capsys):
    command_line = line()
    monitors = iter(["val/accuracy", "val/other"])
    command_line.model = type("Task", (), {"monitor": property(lambda _: next(monitors))})()
    with pytest.raises(SystemExit, match="2"):
        compare.main(AB)
    message = "variants monitor 'test/accuracy' and 'test/other'; choose one by --metric"
    assert capsys.readouterr().err == f"train.py compare: error: {message}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent.yaml", "--variant", "a:"], "no config file 'absent.yaml'"),
        (["a.yaml"], "the following arguments are required: --variant"),
        (["a.yaml", "--variant", "--model.x=1"], "argument --variant: expected one argument"),
        (
            ["a.yaml", "--variant", "a"],
            "--variant must be a name, a colon and arguments, such as 'wide: --x=1', got 'a'",
        ),
        (["a.yaml", "--variant", " : --x=1"], "such as 'wide: --x=1', got ' : --x=1'"),
        (["a.yaml", "--variant", "a: --x='1"], """--variant "a: --x='1": No closing quotation"""),
        ([*AB, "--variant", "a-A:"], "two variants are named 'a-A', or differ only in case and punctuation"),
        ([*AB, "--seeds=0"], "argument --seeds: must be an integer of at least 1, got 0"),
        ([*AB, "--processes=-1"], "argument --processes: must be an integer of at least 1, got -1"),
        (
            [*AB, "--variant", "c: --no-checkpoints"],
            "variant 'c': compare tests the best checkpoint, so trainer.enable_checkpointing cannot be false",
        ),
        ([*AB, "--variant", "c: --typo"], "variant 'c': no argument --typo; nearest: --type"),
    ],
)
def test_mistakes_are_one_line_before_any_run(line, capsys, args, message):
    command_line = line()
    with pytest.raises(SystemExit, match="2"):
        compare.main(args)
    error = capsys.readouterr().err
    assert error.startswith("train.py compare: error: ")
    assert error.endswith(f"{message}\n")
    assert error.count("\n") == 1
    assert command_line.commands == []


def test_the_check_has_the_arguments_of_the_runs(line):
    command_line = line()
    compare.main([*AB, "--", "--common", "1"])
    assert command_line.checks == [
        ["fit", "--config", "a.yaml", "--common", "1", "--variant", name, "--print_config"] for name in "ab"
    ]


@pytest.mark.slow
def test_real_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        compare.main([CONFIG, "--variant", "with:", "--variant", "wrong: --data.train_sample=8"])
    error = capsys.readouterr().err
    assert error.startswith("train.py compare: error: variant 'wrong': ")
    assert "train_sample" in error
    assert not Path("runs").exists()

    rows = compare.main([CONFIG, "--variant", "with the block:", "--variant", f"without: {NO_BLOCK}", "--", *SMALL])
    printed = capsys.readouterr().out
    assert printed.count("$ python -m nonlocal_nets fit") == printed.count("$ python -m nonlocal_nets test") == 2
    for row in rows:
        tested = main(["test", "--config", f"{row['folder']}/config.yaml", *SMALL]).trainer.callback_metrics
        assert float(tested["test/accuracy"]) == pytest.approx(row["test/accuracy"])
        assert f"| {row['variant']} | {row['test/accuracy']:.3f} |" in printed
        assert f"seed 0: {row['folder']}" in printed
    assert f"{rows[0]['folder']}/attention.png" in printed
    assert [path.parent.name for path in Path().glob("runs/*/*.csv")] == ["cued_digits"]


@pytest.mark.slow
def test_two_at_once_give_what_they_give_in_turn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # one thread each, as here
    args = [CONFIG, "--seeds=2", "--variant", "with the block:", "--variant", f"without: {NO_BLOCK}"]
    tables = []
    for processes in ("1", "2"):
        rows = compare.main([*args, "--processes", processes, "--", *SMALL])
        tables.append([(row["variant"], row["seed"], row["test/accuracy"]) for row in rows])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 4
