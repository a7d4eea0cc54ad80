"""Loading, training, generating and embedding: everything that touches torch."""
