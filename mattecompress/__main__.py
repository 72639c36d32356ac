"""`python -m mattecompress` is the command `mattecompress`."""

from mattecompress.cli.app import main

main()
