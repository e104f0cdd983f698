"""The vocabulary of a job: status, reason, lifecycle. Pure."""
