"""What tests of diffusion models share: their contract, laws that a package checks on small models
of its own, and exact bounds of small vocabularies."""
