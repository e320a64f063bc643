"""``python -m elas_lightning``: the ``elas`` command, and Lightning's old ``run model`` spelling of it."""

import sys

from elas_lightning.lightning_command import main

if __name__ == "__main__":
    sys.exit(main())
