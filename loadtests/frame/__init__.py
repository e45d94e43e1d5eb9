"""What load tests have in common. Each module owns one noun; `experiment` puts them together."""
