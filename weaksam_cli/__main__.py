"""``python -m weaksam_cli`` is ``weaksam``."""

from weaksam_cli.main import main

if __name__ == "__main__":
    main()
