"""Map evidence of proposals: what the activation maps say of each, and its correction by multi-fold learning."""
