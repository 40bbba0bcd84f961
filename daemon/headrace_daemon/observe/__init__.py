"""What the daemon tells of itself: logs and the status report."""
