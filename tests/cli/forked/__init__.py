"""A service for the tests of forking: it does what its environment says."""
