"""What `make bench` runs: a file for each row or small group, `run.py` for all of them."""
