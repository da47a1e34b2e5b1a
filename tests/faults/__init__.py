"""What machines, clusters and people do to runs: nothing is lost, nothing is mixed, nothing is called a bug."""
