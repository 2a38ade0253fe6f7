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


@pytest.mark.parametrize("args", [["--id=a/b"], ["--id="], ["--id=.."], ["--project=/tmp/x"], ["--id=a\nb"]])
def test_names_of_no_folder(refused, args):
    option = args[0].partition("=")[0]
    assert refused(fit, *args).startswith(f"{option} must be the name of a folder")
    assert refused(fit, f"--id={'x' * 300}").startswith("--id must have at most 100 letters, got 300")
    assert [path.name for path in Path().iterdir()] == ["data"]


def test_names_that_yaml_reads_as_numbers(capsys):
    """The resolved config of a run, and what it is read as."""
    for name in ("1e5", "25921e05", "0x1F", "1_000", "007", "1.10", "true", "2024-01-01", "1e-5", ".5", "+1"):
        given = [*ARGS, f"--id={name}"] if name[0] not in ".+" else [*ARGS, "--id=x", f"--data.path={name}"]
        for _ in range(2):
            with pytest.raises(SystemExit):
                main(["fit", *given, "--print_config"])
            text = capsys.readouterr().out
            Path("config.yaml").write_text(text)
            given = ["--config", "config.yaml"]
        config = yaml.safe_load(text)
        assert name in (config["id"], config["data"]["init_args"]["path"])
    cli = fit("--id=25921e05", "--trainer.max_epochs=0")
    assert cli.run_folder.name == "25921e05"
    again = main(["validate", "--config", str(cli.run_folder / "config.yaml"), "--ckpt_path=initial"])
    assert again.run_folder == cli.run_folder


def test_a_fit_into_a_run(refused):
    cli = fit("--id=x")
    before = {path: path.read_bytes() for path in cli.run_folder.rglob("*") if path.is_file()}
    line = refused(fit, "--id=x")
    advice = "--ckpt_path=last goes on with it; or choose another --id, or delete the folder first"
    assert line == f"runs/default/x holds a run: {advice}"
    assert {path: path.read_bytes() for path in cli.run_folder.rglob("*") if path.is_file()} == before
    assert fit("--id=x", "--trainer.max_epochs=2", "--ckpt_path=last").trainer.global_step == 6


def test_runs_that_begin_in_the_same_second(monkeypatch):
    monkeypatch.setattr(claim, "stamp", lambda: "now")
    assert [fit("--trainer.max_epochs=0").run_folder.name for _ in range(3)] == ["now", "now-2", "now-3"]


def _fit(args, queue):
    claim.stamp = lambda: "now"
    queue.put(main(["fit", *args]).run_folder.name)


def test_processes_that_begin_at_once():
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    processes = [fork.Process(target=_fit, args=(ARGS, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=60) for _ in processes) == ["now", "now-2", "now-3"]
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
