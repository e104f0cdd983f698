"""The Python client, the command line and the embedded stack: `from trainyard import Client`."""

from trainyard.client import ApiError, Client
from trainyard.models import Checkpoint, Host, Job, JobPage, Metrics

__all__ = ["ApiError", "Checkpoint", "Client", "Host", "Job", "JobPage", "Metrics"]
