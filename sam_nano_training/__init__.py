"""The programme that makes the weights of sam-nano; not part of the package."""
