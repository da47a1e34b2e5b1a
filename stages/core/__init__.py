"""The ground floor: everything the seven rooms share, and nothing that knows one of them."""
