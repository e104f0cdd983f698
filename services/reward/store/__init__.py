"""The reward service's own database: providers, stored rewards, what was spent, verdicts that were paid for."""
