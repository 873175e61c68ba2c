"""``python -m vppo_cli``."""

from vppo_cli.app import main

main()
