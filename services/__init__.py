"""The Trainyard services; none imports another."""
