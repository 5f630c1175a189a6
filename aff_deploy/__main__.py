"""``python -m aff_deploy`` is ``aff-deploy``."""

from aff_deploy.cli import main

main()
