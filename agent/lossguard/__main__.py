"""`python -m lossguard` is the `lossguard` command, for places where scripts are not on the path."""

from lossguard.cli.main import main

if __name__ == "__main__":
    main()
