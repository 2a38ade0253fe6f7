"""Train and evaluate non-local networks, and compare them: `python train.py` alone prints the commands."""

from nonlocal_nets.run.cli import main

if __name__ == "__main__":
    main()
