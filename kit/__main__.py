"""`python -m kit`, which is also how `torchrun -m kit` starts a worker."""

from kit.cli.main import main

if __name__ == "__main__":
    main()
