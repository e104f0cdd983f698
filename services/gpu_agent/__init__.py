"""The daemon on each training host."""
