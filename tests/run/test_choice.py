"""The id of a run, and that no run writes into the folder of another."""

import multiprocessing
from pathlib import Path

import pytest
import yaml

from nonlocal_nets.run import claim
from nonlocal_nets.run.cli import main
from tests.run.conftest import SMALL

pytestmark = [
    pytest.mark.usefixtures("small_images"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
ARGS = [*SMALL, "--trainer.max_epochs=1"]


def fit(*args):
    return main(["fit", *ARGS, *args])


@pytest.mark.parametrize("option", ["--id", "--project"])
def test_names_of_no_folder(refused, option):
    """More names: tests/run/test_claim.py."""
    assert refused(fit, f"{option}=a/b").startswith(f"{option} must be the name of a folder")
    assert [path.name for path in Path().iterdir()] == ["data"]


def test_names_that_yaml_reads_as_numbers(capsys):
    """The resolved config of a run, and what it is read as."""
    options = ("--id", "--project", "--data.path", "--data.root", "--model.weights", "--checkpoint.dirpath")
    names = ("1e5", "25921e05", "0x1F", "1_000", "007", "1.10", "true", "2024-01-01", "1e-5", ".5", "+1")
    for some in (names[:6], names[6:]):
        given = [*ARGS, *(f"{option}={name}" for option, name in zip(options, some, strict=False))]
        for _ in range(2):
            with pytest.raises(SystemExit):
                main(["fit", *given, "--print_config"])
            text = capsys.readouterr().out
            Path("config.yaml").write_text(text)
            given = ["--config", "config.yaml"]
        config = yaml.safe_load(text)
        data, model = (config[name]["init_args"] for name in ("data", "model"))
        read = (config["id"], config["project"], data["path"], data["root"], model["weights"], config["checkpoint"])
        assert (*read[:5], read[5]["dirpath"])[: len(some)] == some
    cli = fit("--id=25921e05", "--trainer.max_epochs=0")
    assert cli.run_folder.name == "25921e05"
    again = main(["validate", "--config", str(cli.run_folder / "config.yaml"), "--ckpt_path=initial"])
    assert again.run_folder == cli.run_folder
    assert again.checkpoint is None


def test_a_fit_into_a_run(refused):
    cli = fit("--id=x")
    before = {path: path.read_bytes() for path in cli.run_folder.rglob("*") if path.is_file()}
    line = refused(fit, "--id=x")
    advice = "--ckpt_path=last goes on with it; or choose another --id, or delete the folder first"
    assert line == f"runs/default/x holds a run: {advice}"
    assert {path: path.read_bytes() for path in cli.run_folder.rglob("*") if path.is_file()} == before
    assert fit("--id=x", "--trainer.max_epochs=2", "--ckpt_path=last").trainer.global_step == 6


@pytest.mark.slow
def test_runs_that_begin_in_the_same_second(monkeypatch):
    monkeypatch.setattr(claim, "stamp", lambda: "now")
    assert [fit("--trainer.max_epochs=0").run_folder.name for _ in range(2)] == ["now", "now-2"]


def _fit(args, queue):
    claim.stamp = lambda: "now"
    queue.put(main(["fit", *args]).run_folder.name)


def test_processes_that_begin_at_once():
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    processes = [fork.Process(target=_fit, args=([*ARGS, "--trainer.max_epochs=0"], queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=60) for _ in processes) == ["now", "now-2"]
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_runs_of_one_slurm_job(monkeypatch):
    """A loop over seeds in a job, which is then requeued."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")

    def loop(*args):
        return [fit(f"--seed_everything={seed}", "--ckpt_path=last", *args) for seed in (1, 2)]

    assert [cli.run_folder.name for cli in loop()] == ["77", "77-2"]
    again = loop("--trainer.num_nodes=1", "--trainer.devices=1")
    assert [cli.run_folder.name for cli in again] == ["77", "77-2"]
    assert [cli.args.seed_everything for cli in again] == [1, 2]
    assert [cli.checkpoint.name for cli in again] == ["last.ckpt", "last.ckpt"]
    assert fit("--seed_everything=1").run_folder.name == "77-3", "without --ckpt_path a run of its own"
