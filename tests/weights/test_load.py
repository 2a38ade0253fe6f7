"""Starting from weights on disk: what is loaded is what the file holds; a mismatch lists both sides."""

import pytest
import torch

import nonlocal_nets as nln
from nonlocal_nets.nn.backbones.image import LocalConvNet
from nonlocal_nets.tasks import Blocks, ImageClassification
from nonlocal_nets.weights import load_weights


def network(classes=2, blocks=False):
    torch.manual_seed(0)
    model = LocalConvNet(classes)
    if blocks:
        nln.insert(model, "layer3", example=torch.zeros(1, 3, 16, 16))
    return model


@pytest.fixture
def saved(tmp_path):
    """A file with the weights of a network, all of them 7."""
    state = {name: torch.full_like(value, 7) for name, value in network().state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def sevens(model):
    return {name for name, value in model.state_dict().items() if bool((value == 7).all())}


def test_everything_is_loaded(saved):
    model = network()
    assert load_weights(model, saved, "fc") == f"weights of {saved}"
    assert sevens(model) == set(model.state_dict())


def test_the_classifier_may_differ_and_starts_at_zero(saved):
    model = network(classes=5)
    assert load_weights(model, saved, "fc").endswith("but for fc")
    assert sevens(model) == {name for name in model.state_dict() if not name.startswith("fc.")}
    assert not model.fc.weight.any()
    assert not model.fc.bias.any()


def test_a_nonlocal_net_starts_from_its_baseline(saved):
    model = network(blocks=True)
    assert load_weights(model, saved, "fc").endswith("but for layer3.2.non_local")
    assert sevens(model) == set(network().state_dict())


def test_a_checkpoint_of_a_task(tmp_path):
    task = ImageClassification(2, "local_convnet", (3, 16, 16), blocks=Blocks(at="layer3"))
    torch.save({"state_dict": task.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
    torch.manual_seed(5)
    again = ImageClassification(
        2, "local_convnet", (3, 16, 16), blocks=Blocks(at="layer3"), weights=str(tmp_path / "last.ckpt")
    )
    assert all(torch.equal(a, b) for a, b in zip(task.network.parameters(), again.network.parameters(), strict=True))
    assert again.report.endswith(f"weights of {tmp_path / 'last.ckpt'}")


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    assert load_weights(network(), tmp_path / "weights.safetensors", "fc").startswith("weights of")


def test_one_message_lists_both_sides(tmp_path):
    state = network().state_dict()
    state["layer9.weight"] = state.pop("layer1.0.weight")
    state["layer2.0.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "other.pt")
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit the network") as error:
        load_weights(model, tmp_path / "other.pt", "fc")
    for part in ("1 missing in it: layer1.0.weight", "1 unexpected in it: layer9.weight", "layer2.0.weight (1,), here"):
        assert part in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"\x80\x02N."])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.ckpt' (is not a checkpoint|holds no state dict)"):
        load_weights(network(), path, "fc")


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="no weight file"):
        load_weights(network(), tmp_path / "none.pt", "fc")
