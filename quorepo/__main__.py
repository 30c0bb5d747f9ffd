"""`python -m quorepo` is the `quorepo` command."""

from quorepo.rpc.cli.main import main

if __name__ == "__main__":
    main()
