"""Models made on this machine for demos and tests; the weights are made by a subprocess, so nothing here imports torch."""
