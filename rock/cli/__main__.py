"""``python -m rock.cli``: the `rock` command where its script is not on the path."""

from rock.cli.main import main

if __name__ == "__main__":
    main()
