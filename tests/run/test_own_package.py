"""`python -m nonlocal_nets` in a user's folder: it is `train.py`, and finds the package that lies there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]
PACKAGE = '''
import torch
from nonlocal_nets.data import CuedDigits
from nonlocal_nets.nn import Embedded, functional
from nonlocal_nets.tasks import ImageClassification


class Distance(Embedded):
    """f = exp(-|theta_i - phi_j|^2), C = sum_j f."""

    def weights(self, query, key, mask):
        return functional.softmax(-torch.cdist(query, key).square(), mask)


class MyData(CuedDigits):
    pass


class MyTask(ImageClassification):
    monitor, mode = "val/loss", "min"
'''
SMALL = ["--data.batch_size=4", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
QUIET = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]


@pytest.mark.slow  # a process, which imports for 10 s
def test_data_task_and_pairwise_function_of_a_package_in_the_current_folder(tmp_path):
    (tmp_path / "mypkg.py").write_text(PACKAGE)
    config = yaml.safe_load((ROOT / "configs" / "image" / "cued_digits.yaml").read_text())
    config["model"]["class_path"] = "mypkg.MyTask"
    config["model"]["init_args"]["blocks"]["pairwise"] = "mypkg.Distance"
    config["data"]["class_path"] = "mypkg.MyData"
    config["trainer"]["callbacks"] = []
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "nonlocal_nets", "fit", "--config", "own.yaml", "--id=own", *SMALL, *QUIET]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    saved = torch.load(tmp_path / "runs/cued_digits/own/checkpoints/last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["blocks"]["pairwise"] == "mypkg.Distance"
    assert [s["monitor"] for s in saved["callbacks"].values() if s.get("monitor")] == ["val/loss"]
    assert any(name.endswith("non_local.phi.weight") for name in saved["state_dict"])
