"""Train, validate, test and predict with non-local networks.

    python train.py fit      --config configs/image/cued_digits.yaml
    python train.py fit      --config configs/image/cued_digits.yaml --model.pairwise=dot_product --model.lr=0.001
    python train.py fit      --config configs/image/cued_digits.yaml --model.blocks=none
    python train.py fit      --config runs/<project>/<id>/config.yaml --ckpt_path=last     go on with it
    python train.py test     --config runs/<project>/<id>/config.yaml --ckpt_path=best     or last
    python train.py predict  --config runs/<project>/<id>/config.yaml --ckpt_path=last --data.path=<file or folder>
    python train.py fit      --config configs/image/cued_digits.yaml --config configs/data/elpv.yaml
    python train.py fit      --help                                    and --model.help=ImageClassification

Whatever stands in a config can be given on the command line, which wins. A run's folder, runs/<project>/<id>, holds its
resolved config, its checkpoints, its logs (TensorBoard and CSV) and its pictures.
"""

from nonlocal_nets.run.cli import main

if __name__ == "__main__":
    main()
