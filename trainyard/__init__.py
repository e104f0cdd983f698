"""The Python client, the command line and the embedded stack."""
