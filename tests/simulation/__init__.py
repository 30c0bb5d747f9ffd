"""The product's engine, journal and state on a virtual clock, network and disk: README.md."""
