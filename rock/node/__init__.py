"""One machine's node: owns its runtime and its sandboxes, keeps pools warm, notices death, serves leases."""
