"""The arguments of a command, before the parser sees them."""

import pytest

from nonlocal_nets.run.arguments import nested_nulls


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--model.blocks.pool=null"], ['--model.blocks={"pool": null}']),
        (["--model.blocks.pool", "null"], ['--model.blocks={"pool": null}']),
        (["--model.init_args.blocks.window=[1, null]"], ['--model.blocks={"window": [1, null]}']),
        (["--model.blocks.window={layer2: [4, ~]}"], ['--model.blocks={"window": {"layer2": [4, null]}}']),
        (["--data.size.crop=null", "--id=x"], ['--data.size={"crop": null}', "--id=x"]),
        (["--model.blocks.pool=[1, 2]"], ["--model.blocks.pool=[1, 2]"]),
        (["--model.blocks.pool", "2"], ["--model.blocks.pool=2"]),
        (["--model.blocks.at=[a"], ["--model.blocks.at=[a"]),
        (["--model.weights=null", "--trainer.max_epochs=null"], ["--model.weights=null", "--trainer.max_epochs=null"]),
        (["--model.init_args.weights=null"], ["--model.init_args.weights=null"]),
        (["--trainer.logger.init_args.name=null"], ["--trainer.logger.init_args.name=null"]),
        (["fit", "--model.blocks.pool"], ["fit", '--model.blocks={"pool": null}']),
    ],
)
def test_nested_nulls_become_mappings(given, expected):
    assert nested_nulls(given) == expected
