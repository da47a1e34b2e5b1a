"""Miners: from the scores of one branch to the pseudo labels of the next."""
