"""What every service imports: contracts, vocabulary and ports; no service logic."""
