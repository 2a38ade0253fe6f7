"""Every row of the paper's video tables has a yaml, whose header names it, and which is the network of that row."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import yaml

from nonlocal_nets.run.cli import main
from nonlocal_nets.tasks import VideoClassification
from tests.build import OPTIONS, build

ROOT = Path(__file__).parents[1]
VIDEO = ROOT / "configs" / "video"
PAPER = sorted((VIDEO / "paper").glob("*.yaml"))
BASES = [VIDEO / "kinetics.yaml", VIDEO / "charades.yaml"]
ROWS = {  # as the paper reports them: top-1 and top-5 on Kinetics, or mAP on Charades' validation videos
    "Table 2a, baseline": "71.8 89.7",
    "Table 2a, Gaussian": "72.5 90.2",
    "Table 2a, Gaussian, embed": "72.7 90.5",
    "Table 2a, dot-product": "72.9 90.3",
    "Table 2a, concatenation": "72.8 90.5",
    "Table 2b, res2": "72.7 90.3",
    "Table 2b, res3": "72.9 90.4",
    "Table 2b, res4": "72.7 90.5",
    "Table 2b, res5": "72.3 90.1",
    "Table 2c, R50 baseline": "71.8 89.7",
    "Table 2c, R50 1-block": "72.7 90.5",
    "Table 2c, R50 5-block": "73.8 91.0",
    "Table 2c, R50 10-block": "74.3 91.2",
    "Table 2c, R101 baseline": "73.1 91.0",
    "Table 2c, R101 1-block": "74.3 91.3",
    "Table 2c, R101 5-block": "75.1 91.7",
    "Table 2c, R101 10-block": "75.1 91.6",
    "Table 2d, R50 space-only": "72.9 90.8",
    "Table 2d, R50 time-only": "73.1 90.5",
    "Table 2d, R50 spacetime": "73.8 91.0",
    "Table 2d, R101 space-only": "74.4 91.3",
    "Table 2d, R101 time-only": "74.4 90.5",
    "Table 2d, R101 spacetime": "75.1 91.7",
    "Table 2e, C2D": "73.1 91.0",
    "Table 2e, I3D 3x3x3": "74.1 91.2",
    "Table 2e, I3D 3x1x1": "74.4 91.1",
    "Table 2e, NL C2D 5-block": "75.1 91.7",
    "Table 2f, R50 C2D": "71.8 89.7",
    "Table 2f, R50 I3D": "73.3 90.7",
    "Table 2f, R50 NL I3D": "74.9 91.6",
    "Table 2f, R101 C2D": "73.1 91.0",
    "Table 2f, R101 I3D": "74.4 91.1",
    "Table 2f, R101 NL I3D": "76.0 92.1",
    "Table 2g, R50 C2D": "73.8 91.2",
    "Table 2g, R50 I3D": "74.9 91.7",
    "Table 2g, R50 NL I3D": "76.5 92.6",
    "Table 2g, R101 C2D": "75.3 91.8",
    "Table 2g, R101 I3D": "76.4 92.7",
    "Table 2g, R101 NL I3D": "77.7 93.3",
    "Table 3, NL I3D R50": "76.5 92.6",
    "Table 3, NL I3D R101": "77.7 93.3",
    "Table 4, I3D (ours)": "35.5",
    "Table 4, NL I3D (ours)": "37.5",
}
GROUPS = ("data", "model", "trainer", "init_args", *OPTIONS)  # of which an overlay changes a part
# one of each table, and what the others have not
COMMANDS = ("2a_dot_product", "2b_res5", "2c_r101_10_blocks", "2d_r50_time", "2g_r50_nl_i3d", "4_nl_i3d")
# [calc] of the number of parameters with 400 classes, to the unit where known
PARAMETERS = {
    "kinetics": 24_327_632,
    "2c_r50_5_blocks": 31_686_096,
    "2f_r50_i3d": 28_043_472,
    "2f_r50_nl_i3d": 35_401_936,
}


def header(path):
    return re.match(r"(#.*\n)+", path.read_text())[0]


def resolved(path, *args):
    """The config that the command in a yaml's header resolves to."""
    overlays = [] if path in BASES else ["--config", str(path)]
    base = BASES["charades" in header(path)]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        main(["fit", "--config", str(base), *overlays, *args, "--print_config"])
    return yaml.safe_load(text.getvalue())


def test_every_row_is_named_once_with_what_the_paper_reports():
    named = {}
    for path in [*BASES, *PAPER]:
        text = header(path)
        reported = re.search(r"[Rr]eported +(.*)", text)[1]
        figures = " ".join(re.findall(r"\b\d\d\.\d\b", reported))
        for row in re.search(r"Source +(.*)", text)[1].split("; "):
            assert row not in named, f"{row} in {path.name} and {named[row]}"
            named[row] = path.name
            assert ROWS[row] == figures, path.name
    assert named.keys() == ROWS.keys()


@pytest.fixture(scope="module")
def bases():
    """The resolved configs of the two experiments."""
    return {path.stem: resolved(path) for path in BASES}


def merged(base, overlay):
    """An overlay on a resolved config, which has each of its keys."""
    assert overlay.keys() <= base.keys()
    inner = {name: merged(base[name], value) for name, value in overlay.items() if name in GROUPS}
    return base | overlay | inner


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_each_has_its_command_and_changes_what_there_is(path, bases):
    base = "charades" if path.stem.startswith("4") else "kinetics"
    config = merged(bases[base], yaml.safe_load(path.read_text()))
    check(path, config)
    for name, kind in OPTIONS.items():
        kind(**config["model"]["init_args"][name])


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem not in COMMANDS)) for path in PAPER],
    ids=lambda path: path.stem,
)
def test_each_resolves_and_its_command_is_true(path):
    check(path, resolved(path))


def check(path, config):
    base = "charades" if path.stem.startswith("4") else "kinetics"
    args = f"--config configs/video/{base}.yaml --config configs/video/paper/{path.name}"
    assert f"python train.py fit {args}\n" in header(path)
    model = config["model"]["init_args"]
    overlay = yaml.safe_load(path.read_text())["model"]["init_args"]
    for name, value in overlay.items():  # the keys that it has, and the others as they were
        assert model[name] == (model[name] | value if isinstance(value, dict) else value)
    long = "2g" in path.stem or base == "charades"
    assert (config["data"]["init_args"]["frames"], model["freeze_norm"]) == ((128, True) if long else (32, False))
    assert "--model.weights" in header(path) or not long
    assert (model["optimizer"]["name"], model["optimizer"]["decay_all"], model["dropout"]) == ("sgd", False, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_papers_parameters(name):
    path = VIDEO / "kinetics.yaml" if name == "kinetics" else VIDEO / "paper" / f"{name}.yaml"
    arguments = resolved(path)["model"]["init_args"] | {"num_classes": 400, "input_size": (3, 16, 32, 32)}
    network = build(VideoClassification, arguments).network
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.slow
def test_128_frames_have_groups_of_four_in_res3_only():
    arguments = resolved(VIDEO / "paper" / "2g_r50_nl_i3d.yaml")["model"]["init_args"]
    arguments |= {"num_classes": 5, "input_size": (3, 32, 32, 32), "freeze_norm": False}
    windows = {
        name: block.window
        for name, block in build(VideoClassification, arguments).named_modules()
        if name.endswith("non_local")
    }
    assert {name.split(".")[1]: window for name, window in windows.items()} == {
        "layer2": (4, None, None),
        "layer3": None,
    }
    assert len(windows) == 5
