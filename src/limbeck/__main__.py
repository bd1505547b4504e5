"""`python -m limbeck`, and `torchrun -m limbeck` for several processes."""

from limbeck.cli import main

if __name__ == "__main__":
    main()
