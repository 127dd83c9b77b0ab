"""``python -m sparse_core``: the same as the console script ``sparse-atoms``."""

import sys


def main() -> int:
    """`cli.main`, once its packages are found; without one, a sentence and exit code 1."""
    try:
        from . import cli

        return cli.main()
    except ModuleNotFoundError as error:
        print(
            f"sparse-atoms: The package {error.name} is missing. In the folder of Sparse Atoms, run: pip install -e '.[demo]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
