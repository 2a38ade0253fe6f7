"""`python -m nonlocal_nets` is `train.py`, and finds packages in the current folder, such as --data=mypkg.MyData."""

from nonlocal_nets.run.cli import main

if __name__ == "__main__":
    main()
