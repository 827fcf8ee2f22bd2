"""Input and output: everything that talks to the API server. It takes no decision."""
