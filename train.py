"""Train and evaluate non-local networks, and compare them.

    python train.py fit      --config configs/image/cued_digits.yaml
    python train.py fit      --config configs/image/cued_digits.yaml --model.blocks.pairwise=dot_product
    python train.py fit      --config configs/image/cued_digits.yaml --model.blocks.at=none --model.optimizer.lr=0.001
    python train.py fit      --config configs/image/cued_digits.yaml --config configs/data/elpv.yaml
    python train.py fit      --config runs/<project>/<id>/config.yaml --ckpt_path=last     resume it
    python train.py test     --config runs/<project>/<id>/config.yaml     its best checkpoint; also validate
    python train.py predict  --config runs/<project>/<id>/config.yaml --data.path=<file or folder>
    python train.py compare  configs/image/cued_digits.yaml --variant "with:" --variant "none: --model.blocks.at=none"
    python train.py sweep    configs/sweeps/pairwise.yaml --processes 2
    python train.py fit      --help                                    and --model.help=ImageClassification

Every key of a config can be given on the command line, which wins. The folder of a run, runs/<project>/<id>, holds its
resolved config, its checkpoints, its logs (TensorBoard and CSV) and its pictures; --trainer.default_root_dir=<folder>
puts it elsewhere. `python -m nonlocal_nets` is the same program, from any folder.
"""

from nonlocal_nets.run.cli import main

if __name__ == "__main__":
    main()
