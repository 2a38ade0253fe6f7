"""Starting from weights on disk: strict, with one message that lists both sides of a mismatch."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nonlocal_nets.nn import blocks, inflate_weights
from nonlocal_nets.nn.pointwise import as_linear
from nonlocal_nets.weights import efficientnet_lite0

SHIPPED = {"efficientnet_lite0": efficientnet_lite0.state_dict}  # weights that a package ships, by name


def load_weights(network: nn.Module, path: str | Path, classifier: str) -> str:
    """Load weights into `network`, and say what was left as it was. Those of a 2-D network are inflated for a 3-D one.

    Two things may be absent or differ: the non-local blocks, which are then left as they are, so that a non-local
    network can start from its own baseline; and the classifier, which then starts at zero, as in BiT (Kolesnikov et
    al., ECCV 2020): the random one of some networks is so large that it spoils the features before it has learnt.

    Args:
        network: the network, blocks included.
        path: a checkpoint of ours, a file with a state dict, by torch.save or safetensors, or a name in SHIPPED.
        classifier: the name of the last layer.

    Raises:
        ValueError: no such file, one that is no checkpoint, or names or shapes that differ; lists both sides.
    """
    given, ours = read(path), network.state_dict()
    if all(name.startswith("network.") for name in given):  # a task's
        given = {name.removeprefix("network."): value for name, value in given.items()}
    given = {
        name: as_linear(value) if name in ours and ours[name].ndim == 2 else value for name, value in given.items()
    }
    given = inflate_weights(given, ours)
    free = (f"{classifier}.", *(f"{name}." for name in blocks(network)))
    left = {name for name in ours if name.startswith(free) and _shape(given, name) != _shape(ours, name)}
    given = {name: value for name, value in given.items() if name not in left and not _foreign(name, ours, classifier)}
    check_fit(given, {name: value for name, value in ours.items() if name not in left}, path)
    network.load_state_dict(ours | given)
    for name, parameter in network.get_submodule(classifier).named_parameters():
        if f"{classifier}.{name}" in left:
            nn.init.zeros_(parameter)
    parts = [prefix[:-1] for prefix in free if any(name.startswith(prefix) for name in left)]
    return f"weights of {path}" + (f", but for {', '.join(parts)}" if parts else "")


def check_fit(given: Mapping[str, Tensor], ours: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises a ValueError that lists both sides where the names or shapes of two state dicts differ."""
    shared = [name for name in ours if name in given and _shape(given, name) != _shape(ours, name)]
    differing = [f"{name} {_shape(given, name)}, here {_shape(ours, name)}" for name in shared]
    sides = {
        "missing in it": [name for name in ours if name not in given],
        "unexpected in it": [name for name in given if name not in ours],
        "of another shape": differing,
    }
    if any(sides.values()):
        listed = "; ".join(f"{len(names)} {side}: {_some(names)}" for side, names in sides.items() if names)
        raise ValueError(f"the weights of {path} do not fit the network: {listed}")


def read(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, of a weight file or of a name in SHIPPED; a ValueError says why there is none."""
    if path in SHIPPED:
        return SHIPPED[str(path)]()
    state = _read(Path(path))
    if spoilt := [name for name, value in state.items() if value.is_floating_point() and value.isnan().any()]:
        raise ValueError(f"{str(path)!r} has weights that are NaN: {_some(spoilt)}")
    return state


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"no weight file {str(path)!r}; a file, or one of {', '.join(SHIPPED)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file provokes in the readers
        reason = " ".join(str(error).partition("\n")[0].split())[:120] or type(error).__name__
        raise ValueError(f"{str(path)!r} is not a checkpoint: {reason}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{str(path)!r} holds no state dict")
    return dict(state)


def _check_sums(path: Path) -> None:
    """Raise a ValueError where a part of a file by torch.save does not have its checksum; torch does not look at it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            if damaged := parts.testzip():
                raise ValueError(f"{damaged} in it is damaged")


def _foreign(name: str, ours: Mapping[str, Tensor], classifier: str) -> bool:
    """Whether a name is of another classifier, of more layers than ours."""
    return name.startswith(f"{classifier}.") and name not in ours


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
