"""Starting from weights on disk: what is loaded is what the file holds; a mismatch lists both sides."""

import pytest
import torch
from safetensors.torch import save_file

import nonlocal_nets as nln
from nonlocal_nets.nn.backbones.image import LocalConvNet
from nonlocal_nets.tasks import Blocks, ImageClassification
from nonlocal_nets.weights import load_weights, read


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


def test_a_block_of_convolutions_of_size_one(saved):
    """As other implementations have them; they must not be passed over as those of another network."""
    state = {name: torch.full_like(value, 7) for name, value in network(blocks=True).state_dict().items()}
    linear = [name for name, value in state.items() if "non_local" in name and value.ndim == 2]
    assert len(linear) == 4
    torch.save(state | {name: state[name][..., None, None] for name in linear}, saved)
    model = network(blocks=True)
    assert load_weights(model, saved, "fc") == f"weights of {saved}"
    assert sevens(model) == set(model.state_dict())


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

    given = {name: torch.full_like(value, 7) for name, value in network().state_dict().items()}
    save_file(given, tmp_path / "weights.safetensors")
    model = network()
    assert load_weights(model, tmp_path / "weights.safetensors", "fc") == f"weights of {tmp_path}/weights.safetensors"
    assert sevens(model) == set(given)


def test_a_classifier_of_more_layers_is_left(tmp_path):
    state = network().state_dict() | {"fc.1.weight": torch.ones(2, 2)}
    del state["fc.weight"], state["fc.bias"]
    torch.save(state, tmp_path / "mlp.pt")
    model = network()
    assert load_weights(model, tmp_path / "mlp.pt", "fc") == f"weights of {tmp_path / 'mlp.pt'}, but for fc"
    assert not model.fc.weight.any()


def test_weights_of_a_2d_network_are_inflated(tmp_path):
    """Each of the 2 frames of a kernel is half of the 2-D one, the rest stays."""
    flat = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    deep = torch.nn.Sequential(torch.nn.Conv3d(3, 4, (2, 1, 1)), torch.nn.BatchNorm3d(4))
    flat.append(torch.nn.Linear(4, 2))
    deep.append(torch.nn.Linear(4, 2))
    torch.save(flat.state_dict(), tmp_path / "flat.pt")
    load_weights(deep, tmp_path / "flat.pt", "2")
    assert torch.equal(deep[0].weight, flat[0].weight[:, :, None].expand(-1, -1, 2, -1, -1) / 2)
    assert torch.equal(deep[0].bias, flat[0].bias)
    assert torch.equal(deep[2].weight, flat[2].weight)


def test_a_long_list_is_cut_and_says_by_how_much(tmp_path):
    torch.save({f"a{k}": torch.zeros(1) for k in range(9)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"9 unexpected in it: a0, a1, a2, a3, a4, a5 and 3 more$"):
        load_weights(torch.nn.Sequential(), tmp_path / "other.pt", "")


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


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {"w": torch.ones(1), "step": 3}}, [torch.ones(1)]])
def test_a_file_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt' holds no state dict"):
        load_weights(network(), tmp_path / "other.pt", "fc")


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"\x80\x02N."])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.ckpt' (is not a checkpoint|holds no state dict)"):
        load_weights(network(), path, "fc")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_damaged_file_is_one_line_or_harmless(tmp_path, suffix):
    """Each byte of a few hundred in turn."""
    weights = {"layer.weight": torch.arange(64.0), "layer.bias": torch.ones(3)}
    path = tmp_path / f"damaged{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": weights, "global_step": 7, "callbacks": {"a": {"b": 1}}}, path)
    else:
        save_file(weights, path)
    whole = path.read_bytes()
    messages = []
    for position in range(0, len(whole), max(len(whole) // 400, 1)):
        changed = bytes([whole[position] ^ 0x41]) + whole[position + 1 :]
        for rest in (changed, b""):
            path.write_bytes(whole[:position] + rest)
            try:
                found = read(path)
            except ValueError as error:
                messages.append(str(error))
            else:
                assert suffix == ".safetensors" or equal(found, weights), "it has no checksum"
    assert len(messages) > 200
    assert all(line.startswith(f"{str(path)!r} ") and len(line) < 300 and "\n" not in line for line in messages)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="no weight file"):
        load_weights(network(), tmp_path / "none.pt", "fc")
