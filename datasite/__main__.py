"""`python -m datasite` is the `datasite` command."""

from datasite.cli import main

if __name__ == "__main__":
    main()
